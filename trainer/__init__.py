"""The training, evaluation and export of srstream's networks."""


def main() -> None:
    """Run the console script `srtrain`; if a dependency is missing, say how to install it."""
    try:
        from trainer.cli import main as run
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"srtrain: training needs {error.name}, which isn't installed: "
            "pip install 'srstream[train]'"
        ) from None
    run()
