"""Measures Luthier beside its peers, interleaved in one run on the same images, weights and threads.

`cargo xtask compare` builds Luthier, makes the environment and calls this. The tables are printed on stdout as
Markdown; every measurement goes to compare.json in the work folder.
"""

import argparse
import json
import os
import sys
import traceback
from pathlib import Path

from problem import Problem


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measures Luthier beside its peers.")
    parser.add_argument("--luthier", type=Path, required=True, help="the binary luthier")
    parser.add_argument("--luthier-compare", type=Path, required=True, help="the binary luthier-compare")
    parser.add_argument("--work", type=Path, required=True, help="a folder for photos, models and results")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--only", action="append", help="a group to measure; all if none is named")
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs, instead of those that are made")
    parser.add_argument("--weights", type=Path, help="weights of ResNet-50, instead of untrained ones")
    return parser.parse_args()


def run(options: argparse.Namespace) -> None:
    """Measures the groups asked for, and prints their tables."""
    if options.weights and not options.weights.is_file():
        raise Problem(
            f"{options.weights}: expected a file of weights, found none", "without --weights, untrained ones are made"
        )
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    # Must be known before torch is imported. The next run finds what this one compiled.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(work / "inductor")
    import groups
    import peers
    import photos
    import table
    from luthier import LuthierCompare

    small, large = photos.provide(work, options.photos)
    weights = (
        options.weights.resolve() if options.weights else peers.random_weights(work / "resnet50-seed-0.safetensors")
    )
    machine = table.machine(options.threads)
    measured, failed = {}, []
    with LuthierCompare(options.luthier_compare.resolve(), work) as compare:
        setting = groups.Setting(options.luthier.resolve(), compare, weights, small, large, options.threads, work)
        for name, prepare in groups.GROUPS.items():
            if options.only and name not in options.only:
                continue
            try:
                group = prepare(setting)
                if group is not None:
                    measured[name] = group.measure(options.rounds)
            except Problem as problem:
                print(problem.render(), file=sys.stderr)
                failed.append(name)
            except Exception:  # each peer fails in a way of its own, and must not take the other groups with it
                traceback.print_exc()
                failed.append(name)
    groups_raw = {name: table.raw(results) for name, results in measured.items()}
    document = {"machine": machine, "groups": groups_raw, "failed": failed}
    (work / "compare.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    print(table.heading(machine, options.rounds))
    for results in measured.values():
        print(f"\n{table.markdown(results)}")
    if failed:
        raise Problem(f"{', '.join(failed)}: not measured, the reasons are above")


def main() -> int:
    """Returns the exit status."""
    try:
        run(arguments())
        return 0
    except Problem as problem:
        print(problem.render(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
