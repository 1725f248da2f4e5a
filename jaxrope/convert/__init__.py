"""Import from and export to Hugging Face. Only this package contains Hugging Face's names."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from jaxrope.convert import exporting as exporting
    from jaxrope.convert import gguf_export as gguf_export
    from jaxrope.convert import importing as importing
    from jaxrope.convert import pretrained as pretrained
    from jaxrope.convert.pretrained import Pretrained as Pretrained
    from jaxrope.convert.rope_export import lost_elsewhere as lost_elsewhere

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["exporting", "gguf_export", "importing", "pretrained"],
    submod_attrs={"pretrained": ["Pretrained"], "rope_export": ["lost_elsewhere"]},
)
