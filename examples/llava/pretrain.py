"""Pretraining of the projector: `llava pretrain` by another name.

python examples/llava/pretrain.py config/llava/pretrain.json
"""

import sys

from paddle_llava.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
