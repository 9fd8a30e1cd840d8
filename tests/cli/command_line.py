"""What the tests of every command share."""

SMALL = ["--width=2", "--layers-per-block=1", "--batch-size=256", "--epochs=2", "--threads=1", "--no-tensorboard"]


def assert_one_line(result, text, expected_code=1):
    code, _, errors = result
    assert code == expected_code
    assert errors.startswith("Error: ")
    assert text in errors
    assert errors.count("\n") == 1, errors
