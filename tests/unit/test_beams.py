"""Beam search in the batch: beams are rows, and the texts are those of transformers' `generate`."""

from pathlib import Path

import pytest
import torch

from serve.handlers.generation.decoder import Decoder
from serve.handlers.generation.passes import pass_of
from tests.unit.test_generation_toys import TOYS, reference, save_toy


@pytest.mark.parametrize("name", TOYS)
@torch.inference_mode()  # type: ignore[untyped-decorator]
def test_a_row_with_the_content_of_another_row_goes_on_as_that_row(name: str, tmp_path: Path) -> None:
    model = reference(save_toy(tmp_path, name))
    dice = torch.Generator().manual_seed(3)
    first, second = (torch.randint(0, 256, (length,), generator=dice).tolist() for length in (12, 9))
    decoder = Decoder(pass_of(model))

    def alone(tokens: list[int]) -> torch.Tensor:
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0, -1]
        return logits

    prefill = decoder.begin([first, second])
    assert decoder.advance(prefill, 100) is not None
    decoder.join(prefill)
    decoder.fork(0, 2)
    histories = [first, second, first, first]
    for tokens in ([1, 2, 3, 4], [5, 6, 7, 8]):
        histories = [[*history, token] for history, token in zip(histories, tokens, strict=True)]
        decoder.step(tokens)
    decoder.rearrange([(3, 0, len(first)), (2, 1, 0)])
    histories = [histories[0], histories[1], histories[1], histories[0]]
    tokens = [9, 10, 11, 12]

    logits = decoder.step(tokens)

    for row, history in enumerate(histories):
        torch.testing.assert_close(logits[row], alone([*history, tokens[row]]), atol=1e-4, rtol=1e-4)
    decoder.leave(0)
    assert decoder.lengths == [len(histories[row]) + 1 for row in (3, 1, 2)]
