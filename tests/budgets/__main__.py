"""Shows what the hot paths cost, and what is recorded: ``python -m tests.budgets [--record]``."""

import json

import click

from tests.budgets import RECORDED, VERSION, recorded
from tests.budgets.counting import count
from tests.budgets.paths import PATHS


@click.command()
@click.option("--record", is_flag=True, help="Record what is counted: these are the new budgets.")
@click.option("--compiler", default="cc", show_default=True, help="A C compiler.")
def main(record: bool, compiler: str) -> None:
    """Count what one operation of each hot path costs."""
    budgets = recorded()
    counted = {}
    for path in PATHS:
        counted[path] = count(path, compiler)
        for kind, value in counted[path].items():
            budget = budgets.get(path, {}).get(kind)
            shown = "-" if budget is None else f"{budget:.2f}"
            click.echo(f"{path:8} {kind:13} {value:10.2f}   recorded {shown:>10}")
    if record:
        RECORDED.mkdir(exist_ok=True)
        (RECORDED / f"{VERSION}.json").write_text(json.dumps(counted, indent=2) + "\n")


if __name__ == "__main__":
    main()
