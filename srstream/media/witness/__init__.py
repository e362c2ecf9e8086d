"""The independent witness: reads a source and an output by itself and compares them.

It shares only PyAV and a few plain helpers with the code that made the output: it opens both files
with plain settings, decodes the source from its first packet on one thread, and neither seeks nor
skips in it. Everything it knows of containers, clocks, colors and subtitles is in this folder, so
a fault in the pipeline's reading is not repeated here. `tests/test_imports.py` enforces that;
`tests/media/witness/test_witness.py` breaks an output in one respect after another.

`survey` reads the packets, `decode` decodes, `pictures` extracts what a frame shows, `likeness`
compares two pictures, `streams`, `cues` and `labels` compare the rest, `compare` writes the
receipt.
"""
