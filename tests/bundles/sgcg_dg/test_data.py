"""Which cases train, validate and test, and everything that read_datalist refuses."""

import json
import shutil
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from common.data import DataError, Preprocessing
from common.engine import root_cause
from sgcg_dg.data import read_datalist

CONFIGS = Path(__file__).resolve().parents[3] / "bundles" / "sgcg_dg" / "configs"
REGIONS = {"cup": [2], "disc": [1, 2]}
PHOTOGRAPHS = {"channels": 3, "kinds": ["photographs"]}


@pytest.fixture(scope="session")
def folder(tmp_path_factory, write_photos):
    """Four domains; a and d give no validation case."""
    training = {"a": 11, "b": 3, "c": 5, "d": 4}
    return write_photos(tmp_path_factory.mktemp("data") / "set", training, {"b": 2, "c": 1})


def read(folder, **options):
    preprocessing = Preprocessing(**PHOTOGRAPHS | options.pop("preprocessing", {}))
    return read_datalist(str(folder), "/nowhere", preprocessing, **{"regions": REGIONS, **options})


def names(items):
    return [item["case"] for item in items]


def numbered(domain, *numbers):
    return [f"{domain}_{number}" for number in numbers]


def change(folder, tmp_path, edit):
    """A copy of dataset.json after ``edit(index)``; the files stay where they are."""
    index = json.loads((folder / "dataset.json").read_text())
    for item in index["training"] + index["validation"]:
        item |= {key: str(folder / item[key]) for key in ("image", "label")}
    edit(index)
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    return tmp_path


SPLITS = {  # training and validation of each domain; of a, every fifth of the training cases, the last ones
    "a": (numbered("a", *range(1, 10)), numbered("a", 10, 11)),
    "b": (numbered("b", 1, 2, 3), numbered("b", 4, 5)),
    "c": (numbered("c", 1, 2, 3, 4, 5), numbered("c", 6)),
    "d": (numbered("d", 1, 2, 3, 4), []),  # too few to hold one back
}


@pytest.mark.parametrize(
    ("options", "target", "sources"),
    [
        ({}, "d", "abc"),
        ({"target_domain": "b"}, "b", "acd"),
        ({"target_domain": "none"}, None, "abcd"),
        ({"source_domains": ["c", "a"]}, "d", "ac"),
        ({"target_domain": "a", "source_domains": ["b", "d"]}, "a", "bd"),
        ({"target_domain": "none", "source_domains": ["c", "b"]}, None, "bc"),
        ({"source_domains": ["a"], "single_source": True}, "d", "a"),
        ({"source_domains": "a", "single_source": True}, "d", "a"),
    ],
)
def test_one_domain_is_left_out(folder, options, target, sources):
    found = read(folder, **options)
    assert found["target"] == target and found["domains"] == list(sources)
    assert names(found["training"]) == [case for name in sources for case in SPLITS[name][0]]
    assert names(found["validation"]) == [case for name in sources for case in SPLITS[name][1]]
    # all cases of the target, whatever their split; nothing of it, nor of other domains, anywhere else
    left_out = {"d": [1, 2, 3, 4], "b": [1, 2, 3, 4, 5], "a": range(1, 12), None: []}[target]
    assert names(found["test"]) == numbered(target, *left_out)
    assert {item["domain"] for item in found["training"] + found["validation"]} == set(sources)
    assert found["labels"] == {1: "rim", 2: "cup"} and all(item["label"] for item in found["test"])


def test_images_of_one_case_stay_together(folder, tmp_path):
    """Six patients with both eyes in domain a: the last of them is held back, with both."""

    def pair(index):
        own = [item for item in index["training"] if item["domain"] == "a"]
        for number, item in enumerate(own):
            item["case"] = f"p{number // 2}"

    found = read(change(folder, tmp_path, pair))
    held = [item["case"] for item in found["validation"] if item["domain"] == "a"]
    assert held == ["p5"] and "p5" not in names(found["training"]) and names(found["training"]).count("p4") == 2


def test_domains_may_be_numbers(folder, tmp_path):
    """As the command line reads them."""

    def rename(index):
        for item in index["training"] + index["validation"]:
            item["domain"] = str("abcd".index(item["domain"]))

    found = read(change(folder, tmp_path, rename), target_domain=1, source_domains=[0, 2])
    assert found["target"] == "1" and found["domains"] == ["0", "2"]


def test_labelled_test_cases_of_the_target_are_scored_too(folder, tmp_path):
    """But not those of other domains, nor those without a label; a hospital may have nothing but test cases."""

    def edit(index):
        index["test"] = [item | {"domain": item["domain"]} for item in index["validation"]]
        index["test"][0].pop("label")
        index["validation"] = []

    changed = change(folder, tmp_path, edit)
    assert names(read(changed, target_domain="b")["test"]) == numbered("b", 1, 2, 3, 5)
    assert names(read(changed)["test"]) == numbered("d", 1, 2, 3, 4)

    def rename(index):
        edit(index)
        index["test"][1]["domain"] = "e"

    changed = change(folder, tmp_path, rename)
    assert names(read(changed, target_domain="e")["test"]) == ["b_5"]
    assert read(changed, target_domain="e")["domains"] == ["a", "b", "c", "d"]


def without_domain(index):
    index["training"][0].pop("domain")
    index["validation"][0].pop("domain")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target_domain": "x"}, ["target_domain: expected none or one of a, b, c, d, found x"]),
        ({"source_domains": ["a", "x", "y"]}, ["source_domains: expected some of a, b, c, d, found x, y", "domains: "
                                               "expected two or more to train on besides the target d, found a;"]),
        ({"source_domains": ["a", "b", "d"]}, ["source_domains: expected domains other than the target d"]),
        ({"source_domains": ["a"]}, ["domains: expected two or more .* found a; .*or set single_source"]),
        ({"source_domains": []}, ["source_domains: expected a domain besides the target d, found none; name one"]),
        ({"source_domains": [], "single_source": True, "target_domain": "a"},
         ["source_domains: expected a domain besides the target a, found none; .* give it another target_domain"]),
        ({"single_source": True}, ["domains: expected one to train on with single_source, found a, b, c; name it in "
                                   "source_domains"]),
        ({"regions": {"cup": [2, 3], "disc": []}}, [r"region cup: expected label ids out of {1: 'rim', 2: 'cup'}, "
                                                    r"found \[2, 3\]", r"region disc: .*found \[\]"]),
        ({"regions": {"one": [1], "two": [1]}}, ["regions one .* and two .*: expected one inside the other"]),
        ({"preprocessing": {"channels": 1}}, [f"{case}, .*: expected a grey image .1 channel.*, found a colour image .*"
                                              "set preprocessing_def::channels" for case in ("a_1", "d_4", "c_6")]),
    ],
)  # fmt: skip
def test_everything_wrong_is_named_at_once(folder, options, expected):
    with pytest.raises(DataError, match="(?s)" + ".*".join(expected)) as error:
        read(folder, **options)
    count = len(expected) if "preprocessing" not in options else 26
    assert str(error.value).startswith(f"{count} problem") and len(str(error.value).splitlines()) == 1 + count


@pytest.mark.parametrize(
    ("edit", "options", "expected"),
    [
        (without_domain, {}, ['a_1: expected a "domain", found none; name the hospital', 'b_4: expected a "domain"']),
        (lambda index: index["training"][3].update(domain="e"), {"target_domain": "x", "source_domains": ["b", "e"]},
         ["target_domain: expected none or one of a, b, c, d, e, found x",
          "domain e: expected two or more training images, found 1; add some, or leave the domain out of source_dom"]),
        (lambda index: index["labels"].pop("2"), {"regions": {"disc": [1]}},
         [rf"{case}, .*: expected label ids out of \[0, 1\], found \[0, 1, 2\]" for case in ("a_1", "d_4", "c_6")]),
    ],
)  # fmt: skip
def test_everything_wrong_with_the_cases_is_named_at_once(folder, tmp_path, edit, options, expected):
    with pytest.raises(DataError, match="(?s)" + ".*".join(expected)) as error:
        read(change(folder, tmp_path, edit), **options)
    assert len(str(error.value).splitlines()) in (1 + len(expected), 1 + 26)


def test_partly_overlapping_regions(folder, tmp_path):
    changed = change(folder, tmp_path, lambda index: index["labels"].update({"3": "vessel"}))
    with pytest.raises(DataError, match=r"regions one \[1, 2\] and two \[2, 3\]: expected one inside the other"):
        read(changed, regions={"one": [1, 2], "two": [2, 3]})


def test_grey_photographs(tmp_path, write_photos):
    folder = write_photos(tmp_path / "set", {"a": 2, "b": 2, "c": 2}, channels=1)
    with pytest.raises(DataError, match="(?s)^6 problems.*expected a colour image .3 channels., found a grey image"):
        read(folder)
    assert names(read(folder, preprocessing={"channels": 1})["training"]) == ["a_1", "a_2", "b_1", "b_2"]


def test_scans_and_photographs_have_configs_of_their_own(tmp_path, write_photos):
    """Told before the channels, which would hint at another option."""
    counts = {"a": 2, "b": 2, "c": 2}
    photos, scans = {"channels": 3}, {"channels": 1, "size": (9, 8, 3)}
    data = [write_photos(tmp_path / str(i), counts, **options) for i, options in enumerate((photos, scans))]
    for number, overlays, expected in ((1, [], "photographs (PNG, JPEG)"), (0, ["volume.json"], "scans (NIfTI)")):
        parser = ConfigParser(ConfigParser.load_config_files([CONFIGS / name for name in ("train.json", *overlays)]))
        parser["dataset_dir"] = str(data[number])
        with pytest.raises(RuntimeError) as error:
            parser.get_parsed_content("datalist")
        assert "6 images, such as " in (text := str(root_cause(error.value))) and f"expected {expected}, as" in text
        parser["dataset_dir"] = str(data[1 - number])
        parser.parse(True)
        assert len(parser.get_parsed_content("datalist")["training"]) == 4


def test_one_hospital_alone(folder, tmp_path):
    def only(index):
        for split in ("training", "validation"):
            index[split] = [item for item in index[split] if item["domain"] == "a"]

    changed = change(folder, tmp_path, only)
    text = "expected one to train on besides the target a, found none; add scans of another hospital, or set "
    with pytest.raises(DataError, match=f"{text}target_domain to none, which leaves none out$"):
        read(changed, single_source=True)
    text = "expected two or more to train on, found a; add scans of another hospital, or set "
    with pytest.raises(DataError, match=f"{text}single_source to train on one$"):
        read(changed, target_domain="none")
    assert read(changed, single_source=True, target_domain="none")["domains"] == ["a"]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_target_may_have_no_training_image(folder, tmp_path, split):
    def move(index):
        index.setdefault("test", [])
        own = [item for item in index["training"] if item["domain"] == "d"]
        index["training"] = [item for item in index["training"] if item["domain"] != "d"]
        index[split] += own

    found = read(change(folder, tmp_path, move), target_domain="d")
    assert found["domains"] == ["a", "b", "c"] and names(found["test"]) == numbered("d", 1, 2, 3, 4)


@pytest.mark.parametrize(("name", "value"), [
    ("none", "none"), ("null", "null"), ("true", "true"), ("True", True), ("1", 1), ("1e3", 1e3),
    ("2024_03_01", 20240301), ("1.50", 1.5), ("$x", "$x"), ("a b", "a b")])  # fmt: skip
def test_a_domain_is_its_name_whatever_the_command_line_makes_of_it(folder, tmp_path, name, value):
    def rename(index):
        for item in index["training"] + index["validation"]:
            item["domain"] = {"b": name}.get(item["domain"], item["domain"])

    changed = change(folder, tmp_path, rename)
    found = read(changed, target_domain=value)
    assert found["target"] == name and found["domains"] == ["a", "c", "d"] and len(found["test"]) == 5
    assert read(changed, target_domain="a", source_domains=[value, "c"])["domains"] == sorted([name, "c"])


def test_a_domain_that_the_command_line_cannot_name(folder, tmp_path):
    changed = change(folder, tmp_path, lambda index: index["training"][0].update(domain="None"))
    with pytest.raises(DataError, match="domain None: expected a name that the command line takes"):
        read(changed)


def test_one_patient_or_image_of_two_domains(folder, tmp_path):
    """A source and the target, both in `training` of dataset.json: by the case, and by the voxels of a copy."""

    def share(index):
        rows = {domain: [item for item in index["training"] if item["domain"] == domain] for domain in "acd"}
        rows["a"][0]["case"] = rows["d"][0]["case"] = "p"
        rows["c"][0]["image"] = str(shutil.copy(rows["d"][1]["image"], tmp_path / "q.png"))

    text = "(?s)2 problems.*p: expected in one split, found in validation and the target d.*the same voxels in q"
    with pytest.raises(DataError, match=text):
        read(change(folder, tmp_path, share))


def test_folds_are_said_not_to_be_read(folder, tmp_path, caplog):
    read(change(folder, tmp_path, lambda index: index["training"][0].update(fold=0)))
    assert "its 1 folds (`folds`, or `fold` of the items) are not read here" in caplog.text


def test_masks_that_lack_a_region(tmp_path, write_photos):
    """Of source cases alone: what a hospital never trained on shows is its own affair."""
    folder = write_photos(tmp_path / "set", {"a": 2, "b": 2, "c": 2}, {"b": 1}, labels=(1,))
    with pytest.raises(DataError) as error:
        read(folder, target_domain="c")
    lines = str(error.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["a_1", "a_2", "b_1", "b_2", "b_3"]
    assert all("expected a cup (labels [2]), found labels [0, 1]" in line for line in lines)
    with pytest.raises(DataError, match="(?s)2 problems.*a_1.*a_2"):
        read(folder, source_domains=["a"], single_source=True)
    assert len(read(folder, target_domain="c", allow_missing=True)["training"]) == 4


def test_sample_data_is_made_at_its_place_alone(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("sgcg_dg.data.generate_sample_data", lambda directory: made.append(directory))
    for place in (tmp_path / "other", tmp_path / "sample_data"):
        with pytest.raises(DataError):
            read_datalist(str(place), str(tmp_path), Preprocessing(**PHOTOGRAPHS), REGIONS)
    assert made == [tmp_path / "sample_data"]


def test_the_sample_data_has_four_domains(sample_data):
    found = read(sample_data)
    assert found["domains"] == ["centre_a", "centre_b", "centre_c"] and found["target"] == "centre_d"
    assert [len(found[key]) for key in ("training", "validation", "test")] == [15, 6, 7]
