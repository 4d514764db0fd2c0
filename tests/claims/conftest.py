import pytest

from tests.claims.toy import SOURCE, git, write


@pytest.fixture
def root(tmp_path):
    (tmp_path / "claims").mkdir()
    git(tmp_path, "init", "-q")
    write(tmp_path, SOURCE)
    return tmp_path
