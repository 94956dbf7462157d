"""What an installed wheel must do: the command answers with the demo model, as the library does."""

import shutil
import subprocess
import sys
from pathlib import Path

import qtransformers

command = shutil.which("qtransformers") or sys.exit("the command is not there")
words = [command, "run", "demo", "What is 7 plus 5?", "--temp", "0"]
said = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout.strip()
with qtransformers.Model.from_pretrained("demo") as model:
    expected = model.chat([{"role": "user", "content": "What is 7 plus 5?"}], temperature=0).text.strip()
if said != expected or not said:
    sys.exit(f"the command says {said!r}; the library {expected!r}")
print(f"qtransformers {qtransformers.__version__} in {Path(qtransformers.__file__).parent}: {said}")
