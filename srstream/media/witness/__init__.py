"""The independent witness: reads a source and an output for itself and compares them.

It shares nothing with the code that made the output but PyAV: it opens both files anew with plain
settings, decodes the source from its first packet on one thread, seeks nowhere in it and skips
nothing. What it knows of containers, clocks, colors and subtitles stands in this folder, so that a
fault in the pipeline's reading is not repeated here. `tests/test_imports.py` holds that,
`tests/media/witness/test_witness.py` breaks an output in one respect after the other.

`survey` reads the packets, `watch` decodes, `shown` says what a frame shows, `likeness` compares
two of them, `streams`, `cues` and `labels` compare the rest, `testimony` joins all to the receipt.
"""
