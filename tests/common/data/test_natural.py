from common.data.natural import natural_key


def test_numbers_count_as_numbers():
    names = ["scan_10", "scan_2", "b7x", "scan_1", "b", "12", "3"]
    assert sorted(names, key=natural_key) == ["3", "12", "b", "b7x", "scan_1", "scan_2", "scan_10"]
