"""The training, evaluation and export of srstream's networks."""


def main() -> None:
    """Run the console script `srtrain`; if a dependency is missing, say how to install it."""
    try:
        from trainer.cli import main as run
    except ModuleNotFoundError as error:
        from srstream.installing import install_command

        raise SystemExit(
            f"srtrain: training needs {error.name}, which isn't installed: "
            f"{install_command('train')}"
        ) from None
    run()
