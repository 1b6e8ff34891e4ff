"""Conditions of a network: where they enter, that they start at nothing, their nulls, words and layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from unstir.nets import Conditioned, Words, layout_ids
from unstir.nets.encoders import SemanticMap

torch.set_num_threads(1)
TINY: dict[str, Any] = {"widths": (8, 16), "width": 16, "heads": 2}
TEXT = {"encoder": "tokens", "route": "cross", "length": 4, "vocabulary": 9}
LOW = {"encoder": "picture", "route": "concat", "channels": 3}
LABEL = {"encoder": "labels", "route": "class", "classes": 3}


def net(conditions: dict[str, Any], seed: int = 0, **options: Any) -> Conditioned:
    torch.manual_seed(seed)
    return Conditioned(2, conditions, **(TINY | options)).eval()


def given(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, T = given(3, 2, 4, 4), torch.tensor([10.0, 500.0, 900.0])


def test_a_fresh_attention_block_is_the_identity() -> None:
    network = net({"text": TEXT})
    blocks: list[Any] = [m for m in network.modules() if type(m).__name__ == "Transformer2DModel"]
    assert len(blocks) == 4  # down, middle, two of the way up
    h = given(3, 16, 2, 2)
    for block in blocks:
        assert torch.equal(block(h, encoder_hidden_states=given(3, 4, 16), return_dict=False)[0], h)
        torch.nn.init.normal_(block.proj_out.weight)
    assert not torch.equal(blocks[0](h, encoder_hidden_states=given(3, 4, 16), return_dict=False)[0], h)


def test_concatenation_changes_the_first_layer_only_and_starts_at_nothing() -> None:
    plain, told = net({}), net({"low": LOW})
    one, two = plain.unet.state_dict(), told.unet.state_dict()
    assert one.keys() == two.keys()
    assert [k for k in one if one[k].shape != two[k].shape] == ["conv_in.weight"]
    assert two["conv_in.weight"].shape[1] == one["conv_in.weight"].shape[1] + 3
    low = given(3, 3, 4, 4, seed=1)
    assert torch.equal(told(X, T, low=low), told(X, T))
    torch.nn.init.normal_(told.unet.conv_in.weight)
    assert not torch.equal(told(X, T, low=low), told(X, T))


def test_left_out_null_and_number_are_one_thing() -> None:
    network = net({"text": TEXT, "low": LOW, "label": LABEL})
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    null = {"text": torch.zeros(3, 4, dtype=torch.int64), "low": torch.zeros(3, 3, 4, 4), "label": torch.full((3,), 3)}
    assert network.null == {"text": 0, "low": 0, "label": 3}
    assert network.conditioner.drop == {"text": 0.1, "low": 0.1, "label": 0.1}
    expected = network(X, T, **null)
    assert torch.equal(network(X, T), expected)
    assert torch.equal(network(X, T, **network.null), expected)
    assert torch.equal(network(X, T, **{k: torch.full((3,), int(v)) for k, v in network.null.items()}), expected)
    assert torch.equal(network(X, T, label=1), network(X, T, label=torch.ones(3, dtype=torch.int64)))
    for name, other in (("text", torch.ones(3, 4).long()), ("low", given(3, 3, 4, 4)), ("label", torch.tensor([0, 1, 2]))):
        assert not torch.equal(network(X, T, **{name: other}), expected), name


def test_tokens_of_several_conditions_stand_side_by_side() -> None:
    labels = {"encoder": "labels", "route": "cross", "classes": 3}
    network = net({"text": TEXT, "kind": labels})
    ids, kind = torch.tensor([[1, 2, 0, 0]] * 3), torch.tensor([0, 1, 2])
    x, tokens, label = network.conditioner.encode(X, {"text": ids, "kind": kind})
    assert label is None
    assert torch.equal(x, X)
    assert tokens is not None
    assert tokens.shape == (3, 5, 16)
    assert torch.equal(tokens[:, :4], network.conditioner.encoder("text")(ids))
    assert torch.equal(tokens[:, 4], network.conditioner.encoder("kind").embed.weight[kind])


def test_a_map_is_one_hot_halved_and_mixed() -> None:
    torch.manual_seed(0)
    encoder = SemanticMap(3, channels=2, halvings=1)
    classes = torch.tensor([[[0, 0, 2, 2], [0, 1, 2, 2], [3, 3, 1, 1], [3, 3, 1, 1]]])
    shares = torch.tensor([[[0.75, 0.25, 0], [0, 0, 1]], [[0, 0, 0], [0, 1, 0]]])  # 3 is unknown
    expected = torch.einsum("hwc,kc->khw", shares, encoder.mix.weight[..., 0, 0]) + encoder.mix.bias[:, None, None]
    torch.testing.assert_close(encoder(classes)[0], expected)
    assert encoder.blank(given(1, 2, 4, 4)).shape == (1, 8, 8)
    torch.testing.assert_close(encoder(encoder.blank(given(1, 2, 2, 2)))[0, :, 0, 0], encoder.mix.bias)


def test_words() -> None:
    texts = ["A red Tram, a red sky", "a blue tram"]
    found = Words.of(texts, limit=4)
    assert found == (",", "a", "red", "tram") or found == ("a", "blue", "red", "tram")
    words = Words(found, 5)
    ids = words(["a tram", "green Tram"])
    assert ids.shape == (2, 5)
    assert ids[0].tolist() == [found.index("a") + 2, found.index("tram") + 2, 0, 0, 0]
    assert ids[1].tolist() == [1, found.index("tram") + 2, 0, 0, 0]
    with pytest.warns(UserWarning, match=r"longer than 5 words; not seen: 'sky now'"):
        words("a red tram a red sky now")
    assert Words.of(reversed(texts), 4) == found


def test_layouts() -> None:
    ids = layout_ids([(0.0, 0.0, 1.0, 0.5), (0.5, 0.25, 0.75, 1.0)], [2, 0], classes=3, grid=4, length=9)
    assert ids.tolist() == [3, 4 + 0, 4 + 2 * 4 + 3, 1, 4 + 1 * 4 + 2, 4 + 3 * 4 + 3, 0, 0, 0]
    for boxes, labels, message in (
        ([(0, 0, 1, 1)] * 4, [0] * 4, "at most 3 boxes"),
        ([(0.5, 0, 0.5, 1)], [0], "need 0 ≤ left < right"),
        ([(0, 0, 1, 1)], [3], "class < 3"),
    ):
        with pytest.raises(ValueError, match=message):
            layout_ids(boxes, labels, 3, 4, 9)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"a": {"encoder": "magic", "route": "cross"}}, "encoder='magic' is unknown; one of labels, tokens"),
        ({"a": {"encoder": "labels", "route": "add", "classes": 2}}, "route='add' is unknown; one of concat, cross, class"),
        ({"a": {"encoder": "picture", "route": "cross", "channels": 1}}, "'picture' cannot take the route 'cross'"),
        ({"a": {"encoder": "labels", "route": "class"}}, "missing 1 required positional argument: 'classes'"),
        ({"a": LABEL, "b": LABEL}, "conditions a, b: only one can take the route 'class'"),
        ({"a": LABEL | {"drop": 1.0}}, "drop=1.0 must be a share"),
        ({"a b": LABEL}, "must be a word"),
    ],
    ids=["encoder", "route", "fit", "options", "two", "drop", "name"],
)
def test_wrong_conditions_are_refused(conditions: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        net(conditions)


def test_wrong_values_are_refused() -> None:
    network = net({"low": LOW, "label": LABEL})
    with pytest.raises(ValueError, match=r"x has 4 channels; this network takes 2 \+ 3 of low = 5"):
        network(given(3, 4, 4, 4), T)
    with pytest.raises(ValueError, match=r"'low' becomes \(3, 3, 8, 8\) .* must be \(3, 3, 4, 4\)"):
        network(X, T, low=given(3, 3, 8, 8))
    with pytest.raises(TypeError, match="condition 'text' is unknown; the network's are low, label"):
        network(X, T, text=0)
    with pytest.raises(ValueError, match="labels from 4 to 4; they are 0 … 3"):
        network(X, T, label=4)
