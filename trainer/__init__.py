"""Where weights come from: training, evaluation and export of srstream's networks."""


def main() -> None:
    """The console script `srtrain`; says how to install what it needs where that is missing."""
    try:
        from trainer.cli import main as run
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"srtrain: training needs {error.name}, which isn't installed: "
            "pip install 'srstream[train]'"
        ) from None
    run()
