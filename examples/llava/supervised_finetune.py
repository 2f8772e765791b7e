"""Fine-tuning, whole or with LoRA: `llava finetune` by another name.

python examples/llava/supervised_finetune.py config/llava/v1_5/lora_sft_argument.json
"""

import sys

from paddle_llava.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
