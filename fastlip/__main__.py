"""``python -m fastlip``: the command line."""

from fastlip.cli import main

if __name__ == "__main__":
    main(prog_name="fastlip")
