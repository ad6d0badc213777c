"""Pages are Jinja templates of this folder: what is put into them is escaped, and nothing may be missing."""

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.reporting import wording

if TYPE_CHECKING:
    from jinja2 import Template


def template(name: str) -> "Template":
    """The named page, ready to be rendered; styles and scripts are parts of it, so that it opens without a network."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": wording.number,
        "interval": wording.interval,
        "point": wording.point_name,
        "share": wording.share,
    }
    return environment.get_template(name)
