"""Objects as plain data and back: what is remembered, what is refused, and what counts as a difference."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch

from common.description import describe, described, differences, rebuild
from common.networks import VNet


@described()
class Wheel:
    def __init__(self, size, spokes=(3, 4), *, name: str = "front") -> None:
        self.size, self.spokes, self.name = size * 2, spokes, name  # what it makes of its arguments is its own business


@described(leave_out=["key"])
class Cart:
    def __init__(self, wheel, more=(), by_name=None, key="/tmp/key") -> None:
        self.wheel, self.more, self.by_name, self.key = wheel, more, by_name, key


@described()
class Barrow(Cart):
    def __init__(self, wheel, load=1.5) -> None:
        super().__init__(wheel)
        self.load = load


class Sledge(Cart):
    """Not described itself."""


@described()
class Chain(torch.nn.Module):
    """A network that is made of others."""

    def __init__(self, first, second) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(image))


PREFIX = f"{Wheel.__module__}."


def there_and_back(thing):
    return rebuild(json.loads(json.dumps(describe(thing))))


def test_arguments_with_their_defaults_however_they_are_given():
    expected = {"class": f"{PREFIX}Wheel", "size": 3, "spokes": [3, 4], "name": "back"}
    assert describe(Wheel(3, name="back")) == describe(Wheel(name="back", size=3)) == expected
    with pytest.raises(TypeError, match=r"Wheel.__init__\(\) missing 1 required positional argument: 'size'"):
        Wheel()


def test_parts_within_parts_come_back():
    cart = Cart(Wheel(1), [Wheel(2), None, True, 0.5, "x"], {"spare": Wheel(3), "others": [{"fourth": Wheel(4)}]})
    back = there_and_back(cart)
    assert describe(back) == describe(cart) and type(back) is Cart
    assert (back.wheel.size, back.more[0].size, back.more[1:]) == (2, 4, [None, True, 0.5, "x"])
    assert back.by_name["spare"].size == 6 and back.by_name["others"][0]["fourth"].size == 8


def test_what_is_left_out_is_not_in_the_description():
    cart = Cart(None, key="elsewhere")
    assert "key" not in describe(cart) and there_and_back(cart).key == "/tmp/key"


def test_numbers_of_numpy_and_tuples_become_plain():
    size = (np.int64(3), np.float32(0.5), np.float64(2))
    told = describe({"size": size, 7: np.bool_(True), "shape": torch.Size([2])})
    assert told == {"size": [3, 0.5, 2.0], "7": True, "shape": [2]}
    assert [type(value) for value in told["size"]] == [int, float, float] and type(told["7"]) is bool


@pytest.mark.parametrize("thing", [torch.zeros(1), np.zeros(2), {1, 2}, object(), torch.nn.ReLU(), print, b"x", 1j])
def test_what_a_file_cannot_hold_is_refused_or_told_by_its_class(thing):
    with pytest.raises(TypeError, match="expected plain data or an object of a described class, found .*@described"):
        describe({"a": [thing]})
    name = f"{type(thing).__module__}.{type(thing).__qualname__}"
    assert describe({"a": [thing]}, strict=False) == {"a": [{"class": name}]}


def test_a_subclass_describes_itself_alone():
    assert describe(Barrow(Wheel(1))) == {"class": f"{PREFIX}Barrow", "wheel": describe(Wheel(1)), "load": 1.5}
    assert there_and_back(Barrow(None, 2)).load == 2
    with pytest.raises(TypeError, match="Sledge"):  # an undescribed one may take other arguments
        describe(Sledge(None))


def test_copies_keep_the_description_and_own_it():
    cart = Cart(Wheel(1), more=[1])
    for copied in (copy.deepcopy(cart), pickle.loads(pickle.dumps(cart))):
        assert describe(copied) == describe(cart)
    network = VNet(2, 1, 3, width=2)
    assert describe(copy.deepcopy(network)) == describe(network)
    assert describe(network)["out_channels"] == 3 and "_made_with" not in network.state_dict()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_a_described_network_can_be_scripted():
    network, image = Chain(VNet(2, 1, 3, width=2), VNet(2, 3, 2, width=2)).eval(), torch.rand(1, 1, 16, 32)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))
    rebuilt = there_and_back(network)
    rebuilt.load_state_dict(network.state_dict())
    torch.testing.assert_close(rebuilt.eval()(image), network(image))


def test_changes_take_the_place_of_what_was():
    told = describe(Cart(Wheel(1), [1]))
    changed = rebuild(told, wheel=Wheel(5), more=None)
    assert (changed.wheel.size, changed.more) == (10, None) and told == describe(Cart(Wheel(1), [1]))
    with pytest.raises(ValueError) as error:  # an override of the run, which says nothing of the file
        rebuild(told, whel=1, colour="red")
    assert str(error.value) == (
        f"model.json, {PREFIX}Cart: found the override `whel`, which it does not take: did you mean `wheel`?; found "
        "the override `colour`, which it does not take: expected one of wheel, more, by_name. Correct or leave out the "
        "override.")  # fmt: skip


@pytest.mark.parametrize("told", [
    {"class": "os.system", "command": "true"}, {"class": "Wheel", "size": 1}, {"class": f"{PREFIX}Sledge"},
    {"class": ["os.system"]}, {"class": None}, {"size": 1}, "tests", None, [1], 3,
])  # fmt: skip
def test_what_is_no_description_of_a_known_class_is_refused(told):
    text = r"model.json: expected the description of a class out of .*Wheel.*, found"
    with pytest.raises(ValueError, match=text):
        rebuild(told)
    if isinstance(told, dict) and "class" in told:
        for part in (told, [told], {"x": [told]}):
            with pytest.raises(ValueError, match=text):
                rebuild(describe(Cart(1)) | {"wheel": part})


def test_missing_and_unknown_arguments_are_refused_all_at_once():
    told = describe(Wheel(1))
    del told["size"], told["name"]
    with pytest.raises(ValueError) as error:
        rebuild(told | {"tyre": 1, "self": 2})
    text = str(error.value)
    assert text.startswith(f"model.json, {PREFIX}Wheel: expected `size`, found none; expected `name`, found none (the ")
    assert "(the default of this release is 'front')" in text and "use the release that trained it" in text
    assert "found `tyre`, which it does not take; found `self`, which" in text


@pytest.mark.parametrize("width", ["wide", "$1", None, {"_target_": "os.getcwd"}, [8], -1, 1e400])
def test_values_that_nothing_can_be_made_of_end_in_our_words(width):
    told = describe(VNet(width=4)) | {"width": width}
    for part in (told, describe(Chain(VNet(width=4), 1)) | {"first": told}):
        with pytest.raises(ValueError) as error:
            rebuild(part)
        assert str(error.value).startswith("model.json, common.networks.vnet.VNet: expected values that it can be made")
        assert repr(width) in str(error.value) and error.value.__suppress_context__


@pytest.mark.parametrize("value", ["$__import__('os').getcwd()", "@other", "%other", {"_target_": "os.getcwd"}])
def test_texts_stay_texts(value):
    back = rebuild(describe(Cart(value, [value], {"x": value})))
    assert (back.wheel, back.more, back.by_name) == (value, [value], {"x": value})


SAME = [(1, 1.0), ([1, 2], [1.0, 2]), ({"a": None}, {}), ({"a": [{"b": 1}]}, {"a": [{"b": 1}]}), ([], [])]
OTHER = [
    (1, True), (0.0, False), (1, "1"), (None, 0), (None, False), ([1, 2], [1]), ([], [None]), ([1], [True]), ([1], 1),
    ([], None), ("a", ["a"]), ([{"b": 1}], [{"b": 2}]), ([[1], [2]], [[1], [3]]),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME)
def test_no_difference(one, other):
    assert differences(one, other) == differences(other, one) == []


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_a_difference_is_found_where_it_is(one, other):
    assert differences({"a": {"b": one}, "c": 1}, {"c": 1, "a": {"b": other}}) == [("a.b", one, other)]
    assert differences(other, one) == [("", other, one)]


def test_all_differences_with_their_places():
    one, other = describe(Cart(Wheel(1), [1], {"x": 1})), describe(Cart(Wheel(2, name="back"), [1, 2], None))
    assert differences(one, other) == [
        ("wheel.size", 1, 2), ("wheel.name", "front", "back"), ("more", [1], [1, 2]), ("by_name", {"x": 1}, None)]
    assert differences({"old": 1}, {"new": 2}) == [("old", 1, None), ("new", None, 2)]
