"""Names in a table are text: they make no column, line, link, formula or HTML."""

import pytest

from common.report.markdown import markdown, plain


def test_usual_names_and_numbers_stay_as_they_are():
    rows = [["structure", "Dice"], ["left_ventricle 2.5 (a), [1, 2]", "0.912 ± 0.100"], ["Größe-脾臓", "< 0.001"]]
    first, line, *rest = markdown(rows).splitlines()
    assert [cell.strip() for cell in rest[0].strip("|").split("|")] == rows[1]
    assert [cell.strip() for cell in rest[1].strip("|").split("|")] == rows[2]
    assert len({len(one) for one in (first, line, *rest)}) == 1


@pytest.mark.parametrize(
    "name, shown",
    [
        ("a|b", r"a\|b"),
        ("`code`", r"\`code\`"),
        ("[text](http://x)", r"[text\](http\://x)"),
        ("![](x)", r"![\](x)"),
        ("[a][b] [c]: d", r"[a\][b] [c\]: d"),
        ("<script>", r"\<script>"),
        ("</td>", r"\</td>"),
        ("<!-- x", r"\<!-- x"),
        ("*a* _b_ ~~c~~", r"\*a\* \_b\_ \~\~c\~\~"),
        ("$x^2$", r"\$x^2\$"),
        ("&lt;", r"\&lt;"),
        ("https://x.y", r"https\://x.y"),
        ("www.x.y", r"www\.x.y"),
        ("a@b.c", r"a\@b.c"),
        ("\\", "\\\\"),
        ("two\nlines\r\n| x |", r"two lines  \| x \|"),
        ("\u202eevil\x00", "\ufffdevil\ufffd"),
    ],
    ids=ascii,
)
def test_markup_is_text(name, shown):
    assert plain(name) == shown
    assert markdown([["a"], [name]]).splitlines()[2] == f"| {shown} |"
