"""Import from and export to Hugging Face. Only this package contains Hugging Face's names."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from jaxrope.convert import importing as importing
    from jaxrope.convert import pretrained as pretrained
    from jaxrope.convert.pretrained import Pretrained as Pretrained

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["importing", "pretrained"],
    submod_attrs={"pretrained": ["Pretrained"]},
)
