"""``lm_eval``'s own command line, to which ``--model stabledllm`` is added."""

from __future__ import annotations

import sys

from stabledllm.errors import UserError


def main() -> None:
    """Run the harness; bad input to this library becomes one sentence on standard error and exit code 2."""
    try:
        from lm_eval.__main__ import cli_evaluate

        import stabledllm.integrations.lm_eval  # noqa: F401

        cli_evaluate()
    except UserError as error:
        print(f"stabledllm: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
