"""Documents that share a row do not see each other: packed, they score as they do alone in plain Transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES, SEQ_LEN, SMALL
from packed import VOCABULARY, make_documents, make_reader

from scaler.data.batches import RowReader
from scaler.model import build, masked_lm


@pytest.fixture(scope="module", params=FAMILIES)
def network(request):
    settings = {"model_type": request.param, **SMALL, **FAMILIES[request.param]}
    return build.build(build.configuration(settings, VOCABULARY, 400, SEQ_LEN), seed=0).double().eval()


def packed(network, folder: Path) -> RowReader:
    documents = make_documents([9, 14, 12, 3, 30])
    return make_reader(folder, documents, SEQ_LEN, 1, first=build.first_position(network.config))


def logits(network, ids, positions, mask) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=ids, position_ids=positions, attention_mask=mask).logits


def test_packed_documents_score_as_they_do_alone(network, tmp_path):
    reader = packed(network, tmp_path)
    arrays = reader.assemble(np.arange(len(reader.rows)))
    ids, positions, segments = map(torch.from_numpy, arrays)
    together = logits(network, ids, positions, masked_lm.attention_mask(network.config, segments))
    seen = 0
    for row in range(len(ids)):
        for segment in range(1, int(segments[row].max()) + 1):
            here = segments[row] == segment
            with torch.no_grad():
                alone = network(input_ids=ids[row, here].unsqueeze(0)).logits[0]
            assert (together[row, here] - alone).abs().max() < 1e-12
            seen += 1
    assert seen == 5
    assert int(segments.max()) > 1


def test_changing_one_document_moves_no_other(network, tmp_path):
    ids, positions, segments = row_of_several(packed(network, tmp_path))
    mask = masked_lm.attention_mask(network.config, segments)
    change = moved(network, ids, positions, segments, mask)
    assert change[segments == 2].min() > 0
    assert change[segments != 2].max() == 0


def test_with_a_plain_padding_mask_it_would_move_them(network, tmp_path):
    ids, positions, segments = row_of_several(packed(network, tmp_path))
    change = moved(network, ids, positions, segments, (segments > 0).long())
    assert change[segments == 1].max() > 1e-6


def row_of_several(reader: RowReader) -> list[torch.Tensor]:
    """The row that holds the most documents."""
    _, _, segments = arrays = reader.assemble(np.arange(len(reader.rows)))
    row = segments.max(axis=1).argmax()
    return [torch.from_numpy(array[row : row + 1]) for array in arrays]


def moved(network, ids, positions, segments, mask) -> torch.Tensor:
    """How far each place's scores move when all ids of the second document change: (1, seq_len)."""
    others = torch.where(segments == 2, (ids + 1) % 400, ids)
    return (logits(network, ids, positions, mask) - logits(network, others, positions, mask)).abs().amax(-1)
