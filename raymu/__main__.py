"""The program `raymu`, also for `python -m raymu`."""

import signal


def main() -> None:
    """`raymu`. Ctrl-C ends it without a word also while the command line is loaded."""
    heeds = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a job in the background may ignore it
    if heeds:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from raymu import cli

    if heeds:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


if __name__ == "__main__":
    main()
