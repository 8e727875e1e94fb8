"""docs/quickstart.ipynb: its cells run, one after another, as a notebook runs them."""

import json
import shutil

from child import ROOT, Python

NOTEBOOK = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
# What the last cells left, against what the package does not compute: sums, and the file's format.
CHECKS = """
from PIL import Image
import io

of_file, of_array, missing = network.predict([song, (rate, array), "no such file.mp3"])
assert of_file.ranking == of_array.ranking and missing.error
np.testing.assert_allclose(sum(of_file.ranking.values()), 1, rtol=1e-5)
np.testing.assert_allclose(result.timeline.sum(axis=1), 1, rtol=1e-5)
assert Image.open(io.BytesIO(result._repr_png_())).size > (1000, 500)
assert missing._repr_png_() is None
assert len({tuple(vector) for vector in vectors.tolist()}) == len(songs)
"""


def test_cells_run_from_nothing(corpus, tmp_path):
    """But with half of the tracks: those of the other tests, which need not be made."""
    audio = tmp_path / "quickstart" / "tfrecords" / "demo_audio" / "24_tracks_seed_1"
    shutil.copytree(corpus, audio)
    code = "\n".join([*CELLS, CHECKS]).replace("demo.tracks = 48", "demo.tracks = 24")
    done = Python("-c", code, cwd=tmp_path).finish()
    assert done.returncode == 0, done.stderr
    assert "no such file" in done.stdout
    assert (tmp_path / "quickstart" / "run" / "report" / "index.html").exists()


def test_stored_outputs_are_of_a_whole_run():
    """Nothing failed when it was run last, and every cell that shows something has it stored."""
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert kinds <= {"stream", "execute_result"}
    assert any("image/png" in o.get("data", {}) for cell in code for o in cell["outputs"])
