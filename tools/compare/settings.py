"""``compare.json`` of a bundle: what is compared, and what is told about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.data import DataError
from common.data.json_file import read_json

KEYS = {"overrides": dict, "grid": dict, "tables": list, "floor": dict}  # all others are groups
TABLE_KEYS = {"measure": str, "columns": list, "less_is_better": bool, "title": str}
TABLE_DEFAULTS = {"less_is_better": False, "title": ""}


def read_settings(file: Path, group: str) -> dict[str, Any]:
    """``compare.json``, with the wanted group as ``variants`` and with the defaults of its tables.

    ===========  =======================================================================================================
    a group      name to the overrides of train.json; ``config`` among them names an overlay file of the same folder, or
                 lists several, each laid over those before it. ``variants`` is the group taken by default; the first of
                 a group is tested against each other one
    overrides    for all runs; ``{output}`` is the folder of the comparison
    grid         key of train.json to its values, the outermost first: a list, or what it takes from the data set:
                 ``each label``, ``each fold`` (of ``folds``, or else those that a training makes), ``each domain``
                 (those of ``training``)
    tables       a list of tables: ``measure``, the column of the runs' ``cases.csv`` to compare (``hd95`` is that of
                 whichever unit they are in); ``columns``, other columns of it: one table for each value of the first,
                 if there are two, and one column for each value of the last. Optional: ``less_is_better``, and a
                 ``title`` in place of the measure's name.
                 A row whose entry in one of the columns is empty belongs to no column, and one without a number of the
                 measure does not count. So what is measured once a run (and not once a case) gets one row of its own,
                 and no test
    floor        optional: the ``name`` of what needs no training, and its ``measures``: measure of a table to the
                 column that holds it
    ===========  =======================================================================================================
    """
    if not file.is_file():
        raise SystemExit(f"{file}: expected the settings of the comparison, found no such file")
    try:
        settings = read_json(file)
    except DataError as error:
        raise SystemExit(str(error)) from error
    given = {"floor": {}} | settings
    problems = _problems(given, group)
    if problems:
        raise SystemExit("\n  ".join([f"{file}:", *problems]))
    tables = [TABLE_DEFAULTS | entry for entry in given["tables"]]
    return {key: given[key] for key in KEYS} | {"tables": tables, "variants": given[group]}


def choose_variants(variants: dict[str, dict], wanted: Sequence[str] | None) -> dict[str, dict]:
    unknown = [name for name in wanted or [] if name not in variants]
    if unknown:
        raise SystemExit(f"variants: expected some of {', '.join(variants)}, found {', '.join(unknown)}")
    return {name: variants[name] for name in wanted} if wanted else variants


def _problems(given: dict[str, Any], group: str) -> list[str]:
    groups = [key for key in given if key not in KEYS]
    problems = [f"`{key}`: expected a {kind.__name__}, found {json.dumps(given.get(key))}"
                for key, kind in KEYS.items() if not isinstance(given.get(key), kind)]
    problems += [f"`{key}`: expected a group of variants, found {json.dumps(given[key])}; settings are "
                 f"{', '.join(KEYS)}" for key in groups if not _is_group(given[key])]
    problems += [f"`{key}`: expected a file's name or a list of them as `config` of {name}, found "
                 f"{json.dumps(changes['config'])}" for key in groups if _is_group(given[key])
                 for name, changes in given[key].items() if not _names_files(changes.get("config", []))]
    if group not in groups:
        problems.append(f"group: expected one of {', '.join(groups)}, found {group}")
    return problems or _problems_of_tables(given["tables"]) or _problems_of_floor(given["floor"], given["tables"])


def _is_group(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(changes, dict) for changes in value.values())


def _names_files(config: Any) -> bool:
    return isinstance(config, str) or isinstance(config, list) and all(isinstance(name, str) for name in config)


def _problems_of_tables(tables: list) -> list[str]:
    problems = [] if tables else ['`tables`: expected {"measure": ..., "columns": [...]} at least once, found none']
    for i, entry in enumerate(tables):
        if not isinstance(entry, dict):
            problems.append(f"`tables[{i}]`: expected an object, found {json.dumps(entry)}")
            continue
        unknown = ", ".join(key for key in entry if key not in TABLE_KEYS)
        if unknown:
            problems.append(f"`tables[{i}]`: expected {', '.join(TABLE_KEYS)}, found {unknown}")
        given = TABLE_DEFAULTS | entry
        problems += [f"`tables[{i}]`: expected a {kind.__name__} as `{key}`, found {json.dumps(given.get(key))}"
                     for key, kind in TABLE_KEYS.items() if not isinstance(given.get(key), kind)]
        columns = given.get("columns")
        if isinstance(columns, list) and not (len(columns) in (1, 2) and all(isinstance(one, str) for one in columns)):
            problems.append(f"`tables[{i}]`: expected the names of one or two `columns`, found {json.dumps(columns)}")
    return problems


def _problems_of_floor(floor: dict, tables: list[dict]) -> list[str]:
    if not floor:
        return []
    name, measures = floor.get("name"), floor.get("measures")
    if set(floor) != {"name", "measures"} or not isinstance(name, str) or not isinstance(measures, dict):
        return [f'`floor`: expected {{"name": "...", "measures": {{...}}}}, found {json.dumps(floor)}']
    known = list(dict.fromkeys(entry["measure"] for entry in tables))
    if not measures or not all(key in known and isinstance(value, str) for key, value in measures.items()):
        return [f"`floor`: expected columns for some `measures` of the tables ({', '.join(known)}), "
                f"found {json.dumps(measures)}"]
    return []
