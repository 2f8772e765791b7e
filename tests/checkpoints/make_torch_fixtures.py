"""Makes fixtures/*.bin with torch: python tests/checkpoints/make_torch_fixtures.py"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch

FIXTURES = Path(__file__).parent / "fixtures"


def main() -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = OrderedDict(
        float32=torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7,
        float16=(torch.arange(6, dtype=torch.float32) / 7).half(),
        bfloat16=(torch.arange(6, dtype=torch.float32) / 7).bfloat16(),
        transposed=base.t(),
        sliced=base[1:3, ::2],
        second_row=base[1],
        scalar=torch.tensor(2.5),
        parameter=torch.nn.Parameter(torch.full((3,), 0.5)),
        position_ids=torch.arange(5).expand(1, -1),
    )
    torch.save(tensors, FIXTURES / "tensors.bin")
    torch.save(torch.nn.Linear(2, 3).state_dict(), FIXTURES / "state_dict.bin")
    torch.save(torch.nn.Linear(2, 3), FIXTURES / "whole_module.bin")
    torch.save(tensors, FIXTURES / "before_zip.bin", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
