"""Every write goes through `polopt.core.files`, which says what could not be written; what another library writes goes
into memory, or stands inside `files.writing` or `files.new_folder`."""

from __future__ import annotations

import ast
from pathlib import Path

import polopt

PACKAGE = Path(polopt.__file__).parent
CALLS = {"write_text", "write_bytes", "mkdir", "makedirs", "touch", "unlink", "rmdir", "rmtree", "copytree", "copyfile"}
CALLS |= {"mkdtemp", "mkstemp", "NamedTemporaryFile", "TemporaryDirectory", "save_file", "savefig", "savez", "imwrite"}
CALLS |= {"to_csv", "to_parquet", "save_pretrained", "get_writer", "SummaryWriter", "update_episodes"}
WHOLE = {"os.replace", "os.rename", "os.open", "os.remove", "json.dump", "np.save", "torch.save", "torch.jit.save"}
WHOLE |= {"torch.export.save", "MinariStorage.new", "shutil.move", "shutil.copy"}
ALLOWED = {
    "core/locks.py os.open": "the lock itself, which asks `files.refused`",
    "core/locks.py path.unlink": "the lock goes with its process, whatever the disk says",
    "data/blocks.py tempfile.NamedTemporaryFile": "says how much memory it needs",
    "data/blocks.py folder.mkdir": "beside it",
    "data/storing.py MinariStorage.new": "inside `new_folder`",
    "data/storing.py storage.update_episodes": "inside `new_folder`",
    "policies/exported.py torch.export.save": "into memory",
    "policies/exported.py torch.jit.save": "into memory",
    "policies/small_lm.py model.save_pretrained": "inside `new_folder`",
    "policies/small_lm.py tokenizer.save_pretrained": "inside `new_folder`",
    "policies/text.py model.save_pretrained": "inside `new_folder`",
    "policies/text.py self.bare.config.save_pretrained": "inside `new_folder`",
    "policies/text.py self.tokenizer.save_pretrained": "inside `new_folder`",
    "policies/vllm.py tempfile.TemporaryDirectory": "lives as long as the engine",
    "report/curves.py figure.savefig": "into memory",
    "report/sheets.py drawing.savefig": "into memory",
    "report/video.py imageio.get_writer": "a pipe to ffmpeg: a video that fails is one sentence in the report",
    "training/api.py folder.rmdir": "clears away the empty folder of a run that never began",
    "training/loggers.py SummaryWriter": "inside `files.writing`",
}


def writes(source: str) -> set[str]:
    """The calls in a source that write, as they stand there."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name == "open":
            mode = [*node.args[1:2], *(each.value for each in node.keywords if each.arg == "mode")]
            if not all(isinstance(each, ast.Constant) and not set(each.value) & set("wax+") for each in mode):
                found.add(name)
        elif name in WHOLE or (name.rpartition(".")[2] in CALLS and not name.startswith("files.")):
            found.add(name)
    return found


def test_every_write_goes_through_one_place():
    files = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert len(files) > 100
    del files["core/files.py"]
    assert {f"{file} {call}" for file, source in files.items() for call in writes(source)} == set(ALLOWED)


def test_writes_are_seen():
    assert writes("open(path)\nopen(path, 'rb')\nfiles.replace(path, b'')\ntext.replace('a', 'b')") == set()
    assert writes("open(path, 'a')") == writes("open(path, mode='r+')") == writes("open(path, mode)") == {"open"}
    assert writes("path.write_text('x')\nos.replace(a, b)") == {"path.write_text", "os.replace"}
