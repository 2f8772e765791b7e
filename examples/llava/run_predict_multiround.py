"""A conversation of several rounds about a picture: `llava chat` by another name.

    python examples/llava/run_predict_multiround.py \
        --model-path "liuhaotian/llava-v1.6-vicuna-7b" --image-file "bus.jpg" --fp16
"""

import sys

from paddle_llava.cli import main

if __name__ == "__main__":
    sys.exit(main(["chat", *sys.argv[1:]]))
