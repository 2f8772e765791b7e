"""A LoRA adapter merged into its base model: `llava merge` by another name.

python examples/llava/merge_lora_params.py --model_name_or_path BASE --lora_path ADAPTER --merge_model_path OUT
"""

import sys

from paddle_llava.cli import main

if __name__ == "__main__":
    sys.exit(main(["merge", *sys.argv[1:]]))
