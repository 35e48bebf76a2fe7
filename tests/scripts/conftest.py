"""What several tests of the scripts share."""

import pytest


@pytest.fixture
def error_of(capsys):
    """Run the main of a script, which must fail with one line and status 2, and return the line."""

    def run(main, flags):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([*map(str, flags)])
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert error.startswith("error: ") and error.count("\n") == 1, error
        return error

    return run
