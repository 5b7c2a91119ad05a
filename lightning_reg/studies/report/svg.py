"""Conversion of matplotlib's SVG into an element of the page."""

import re
from collections.abc import Mapping
from xml.etree import ElementTree

__all__ = ["for_page"]

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


def for_page(
    svg: str,
    prefix: str,
    root_attributes: Mapping[str, str],
    attributes: Mapping[str, Mapping[str, str]],
    colors: Mapping[str, str],
) -> str:
    """Returns a figure as an element of a page with several figures.

    Args:
        svg: Content of matplotlib's SVG file.
        prefix: Prefix of ids, unique in the page; ids without references are removed.
        root_attributes: Attributes of the SVG element, in place of its size: the page determines its width.
        attributes: Attributes of nested elements, by their ids.
        colors: CSS colors of the page, by the colors in the file.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            # The style of line joins and ends is defined once in the page's style sheet.
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    referred_to = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    for element in root.iter():
        _shorten(element)
        name = element.attrib.pop("id", "")
        element.attrib.update(attributes.get(name, {}))
        if name in referred_to:
            element.set("id", name)
    for key in ("width", "height", "version"):
        del root.attrib[key]
    root.attrib.update(root_attributes)
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{prefix}-", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    for color, name in colors.items():
        text = text.replace(color, name)
    return text


def _shorten(element: ElementTree.Element) -> None:
    """Removes what isn't visible: indentation, and digits beyond a thousandth of a point."""
    element.text = element.text if element.tag == f"{{{_SVG}}}text" else None
    element.tail = None
    for key in ("d", "x", "y", "transform"):
        if key in element.attrib:
            element.set(key, re.sub(r"(\.\d{3})\d+", r"\1", " ".join(element.attrib[key].split())))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
