"""What a model wrote is never run: only arithmetic of a bearable size is evaluated."""

from __future__ import annotations

import pytest
from sympy.parsing.sympy_parser import parse_expr

from stabledllm.tasks.gym.guard import Refused, guarded_eval


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("94*4 - 61 - 6", "309"),
        ("2*x**3/3 + C + sin(x)", "C + 2*x**3/3 + sin(x)"),
        ("-x**(-1/2)", "-1/sqrt(x)"),
        ("exp(2*x)/2 + x1**2 + 0.5e3", "x1**2 + exp(2*x)/2 + 500.0"),
        ("2**(n + 1)", "2**(n + 1)"),
        ("x**2.5", "x**2.5"),
        ("(3*x + 1)**11/33 + (1 + 2)**40", "(3*x + 1)**11/33 + 12157665459056928801"),
    ],
)
def test_sympy_reads_arithmetic(text, value):
    with guarded_eval():
        assert str(parse_expr(text)) == value


@pytest.mark.parametrize(
    "text", ["[[1, 2], [3, -4]]", "('A', 'B')", "0x10 << 0x3", "1.5", "[" + "'12.5', " * 900 + "]"]
)
def test_literals_are_read(text):
    expected = eval(text)
    with guarded_eval():
        assert eval(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('false')",
        "open('there', 'w')",
        "exec('1')",
        "().__class__",
        "x.__class__",
        "lambda: 1",
        "9**9**9",
        "((9**99)**99)**99",
        "2**1000000000",
        "2**(1000*1000)",
        "1 << 10**10",
        "[1]*10**9",
        "'a'*10**10",
        "('a'+'a')*10**10",
        "([1]+[1])*10**9",
        "'%999999999d' % 1",
        "Pow(9, Pow(9, Pow(9, 9)))",
        "2**Mul(100, 100, 100, 100, 100)",
        "2**Add(1, 2)",
        "2**Integer('999'+'999'+'999'+'999')",
        "2**Integer('999999999')",
        "2**Rational('999999999/1')",
        "Rational('1e999999999')",
        "Integer(Float('1e999999999'))",
        "Float('0.1', 10**9)",
        "Symbol('x', positive=True)",
        "exp(exp(exp(exp(9))))",
        "(x + y + 1)**99",
        "[" + "1," * 2000 + "2**9]",
        "2**exp(exp(9))",
        "factorial(100000)",
        "1+" * 2000 + "1",
    ],
)
@pytest.mark.parametrize("read", [lambda text: eval(text), parse_expr], ids=["eval", "parse_expr"])
def test_all_else_is_refused(text, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with guarded_eval(), pytest.raises((Refused, SyntaxError)):
        read(text)
    assert not list(tmp_path.iterdir())


def test_no_name_of_the_caller_is_seen():
    secret = 7
    with guarded_eval(), pytest.raises(NameError):
        eval("secret")
    assert eval("secret") == secret
