"""What the tests of all stages share."""

from pathlib import Path

import pytest

from pipeline.plots import dominant_share, save


@pytest.fixture
def looked_at(tmp_path: Path):
    """Saves every figure of some findings and refuses one that is all but blank."""

    def look(findings) -> list[str]:
        for name, figure in findings.figures.items():
            path = tmp_path / f"{name}.png"
            save(figure, path)
            assert dominant_share(path) < 0.99, name
        return sorted(findings.figures)

    return look
