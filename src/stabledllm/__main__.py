"""``stabledllm`` and ``python -m stabledllm``: the command line, or what to install for it."""

import sys


def main() -> None:
    """Run the command line; where it is not installed, say so in one sentence and end with code 2."""
    try:
        from stabledllm.cli.main import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("stabledllm"):
            raise
        sys.stderr.write(
            f"stabledllm: expected {error.name} for the command line, found it not installed; "
            f"pip install 'stabledllm[train]'.\n"
        )
        raise SystemExit(2) from None
    run()


if __name__ == "__main__":
    main()
