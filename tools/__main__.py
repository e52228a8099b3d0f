"""``python -m tools COMMAND``: the command line of the collection."""

from __future__ import annotations

import inspect
import signal
import sys
from types import FrameType

import fire
from fire.decorators import SetParseFns
from fire.parser import DefaultParseValue


def _files(text: str) -> str | list[str]:
    """A path, or a list of them such as "['a.json','b.json']"; a path alone stays the text that it is."""
    return DefaultParseValue(text) if text.startswith("[") else text


class Tools:
    """Run it in the folder of the repository. `python -m tools COMMAND --help` explains a command."""

    # A command's module is imported when the command is called: half of them need torch, which takes seconds.

    @SetParseFns(bundle=str, output=str)
    def sample(self, bundle: str, output: str | None = None, seed: int = 0) -> None:
        """Generate the sample data of a bundle.

        Args:
            bundle: name of a folder in bundles/, such as apscl_fewshot.
            output: folder to create; by default the bundle's own sample_data, where training looks for it.
            seed: which data; training without any override uses 0.
        """
        from tools.sample import sample

        sample(bundle, output, seed)

    @SetParseFns(bundle=str, dataset_dir=str, config_file=_files)
    def check(self, bundle: str, dataset_dir: str, config_file: str | None = None, **overrides: str) -> None:
        """Check a data set for a bundle: every bad case at once, or a summary.

        Args:
            bundle: name of a folder in bundles/.
            dataset_dir: the folder that holds dataset.json.
            config_file: as for the training; by default the bundle's train.json.
            overrides: keys of it, as for the training, such as --novel_labels "[3]".
        """
        from tools.check import check

        check(bundle, dataset_dir, config_file, overrides)

    @SetParseFns(bundle=str, dataset_dir=str, output=str)
    def preview(self, bundle: str, dataset_dir: str | None = None, output: str | None = None, cases: int = 4) -> None:
        """Draw the labels of a data set over its images: look at your data before you train.

        Args:
            bundle: name of a folder in bundles/.
            dataset_dir: the folder that holds dataset.json; by default the bundle's sample data.
            output: folder for the pictures; by default one named after the data set in the bundle's eval/preview.
            cases: how many cases, spread evenly over the labelled ones.
        """
        from tools.preview import preview

        preview(bundle, dataset_dir, output, cases)

    @SetParseFns(name=str, source=str, output=str)
    def prepare(self, name: str, source: str, output: str, **options: str) -> None:
        """Turn a public data set, as its users download it, into a folder to train on.

        Args:
            name: which data set; a wrong name lists them.
            source: the unpacked download; never written to.
            output: folder to create, for --dataset_dir.
            options: of acdc, la and pancreas: `--labelled 8`, how many patients keep their labels; `--validation FILE`,
                ids for validation, one a line; of acdc `--test FILE`, likewise; of la and pancreas `--train FILE`,
                likewise, the labelled first, and `--crop label` (around the label, as the papers do) or `none`; of
                brats the first three, and `--modality flair`, t1, t1ce or t2.
        """
        from tools.prepare import prepare

        prepare(name, source, output, **options)

    @SetParseFns(bundle=str, dataset_dir=str, output=str, config=str)
    def compare(
        self,
        bundle: str,
        dataset_dir: str,
        output: str | None = None,
        group: str = "variants",
        variants: str | None = None,
        seeds: str | None = None,
        folds: str | None = None,
        labels: str | None = None,
        domains: str | None = None,
        processes: int = 1,
        config: str | None = None,
        **overrides: str,
    ) -> None:
        """Train a method and its rivals under one protocol; print their table, and how long a run of each took.

        Goes on where it was stopped.

        Args:
            bundle: name of a folder in bundles/; its configs/compare.json says what is compared.
            dataset_dir: the folder that holds dataset.json.
            output: folder of the runs and the table; by default named after the data set in the bundle's eval/compare.
            group: which group of compare.json, such as ablation.
            variants: some of the group, such as PANet,ADNet; the first is tested against each other.
            seeds: such as 0,1,2; by default those of compare.json.
            folds: such as 1,2; by default all of the data set.
            labels: such as 1,4; by default each of the data set in turn.
            domains: such as a,b; by default each of the data set in turn, where compare.json's grid has such an axis.
            processes: runs at a time; one thread each when more than one.
            config: another file of the form of compare.json.
            overrides: any key of train.json, for all runs, such as --max_epochs 2.
        """
        from tools.compare import compare

        axes = {"seeds": seeds, "folds": folds, "labels": labels, "domains": domains}
        compare(bundle, dataset_dir, output, group, variants, axes, processes, config, overrides)

    @SetParseFns(output=str)
    def bench(self, name: str = "volume", repeats: int = 3, output: str | None = None) -> None:
        """Time a part of the collection against its plain form in one run: a ratio, and the difference of the results.

        Args:
            name: `volume`: four organs of one volume, a cached support bank against slice by slice, class by class;
                `contrast`: the Gaussian contrast with full covariance against diagonal and naive forms, and in a step;
                `augmentation`: the expected cross-entropy by look-up against voxel by voxel, and in a step;
                `scan`: the selective scan of each backend against the loop over the tokens, on one thread or a GPU.
            repeats: timed runs of each side, after one to warm up; the minima are compared.
            output: a JSON file for the figures.
        """
        from tools.bench import bench

        bench(name, repeats, output)


def main() -> None:
    command, wants_help = sys.argv[1:], {"--help", "-h", "help"} & set(sys.argv[1:3])
    if not command or command[0] in wants_help:  # fire's own page for this is hard to read
        print(overview())
        return
    try:
        # behind `--`, because otherwise fire takes a command without its arguments for an error
        fire.Fire(Tools, [command[0], "--", "--help"] if wants_help else command, name="tools")
    except OSError as error:  # a disk, or a file of the user's: the text names it
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt as stop:
        number, *advice = stop.args or [signal.SIGINT]
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        print(f"\nStopped by {name}. {' '.join(advice) or 'Start again with the same command.'}", file=sys.stderr)
        raise SystemExit(128 + number) from None


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def overview() -> str:
    """The commands, one line each."""
    commands = {name: inspect.getdoc(command) or "" for name, command in vars(Tools).items() if name[0] != "_"}
    lines = [f"  {name:<9} {text.splitlines()[0]}" for name, text in commands.items()]
    return "\n".join(["usage: python -m tools COMMAND ...", "", *lines, "", inspect.getdoc(Tools) or ""])


if __name__ == "__main__":  # workers of `compare` import this module again
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, _stop)
    main()
