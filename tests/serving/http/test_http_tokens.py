"""Who may call by HTTP, and who is known by which token."""

import hashlib

import pytest
from http_calls import TEXTS, TOKEN, ask, client, counted, images, made, packed, with_tokens

from dipp_ray.errors import UserError
from dipp_ray.serving.http.tokens import VARIABLE, read_tokens, trainer_of


def test_the_token_says_who_calls_whatever_the_call_says():
    service = with_tokens(ann=TOKEN, ben="another-long-token", ann2=TOKEN + "-next")
    with client(service, host=("10.1.2.3", 5)) as opened:
        for token, rows in ((TOKEN, 3), ("another-long-token", 2), (TOKEN + "-next", 1)):
            x = images(rows)
            reply = ask(opened, packed(x, TEXTS[:rows], trainer="liar"), authorization=f"Bearer {token}")
            assert reply.status_code == 200
        text = opened.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"}).text
    assert counted(text, "rows", "trainer") == {("ann",): 3, ("ben",): 2, ("ann2",): 1}
    assert TOKEN not in text and "liar" not in text


def test_several_tokens_of_one_trainer_are_valid_while_they_are_changed():
    service = made()
    opened = client(service, host=("10.1.2.3", 5))
    old, new = TOKEN, "the-token-that-comes-next"
    for valid in ([old], [old, new], [new]):
        digests = {hashlib.sha256(token.encode()).hexdigest(): "ann" for token in valid}
        service.reconfigure({"terms": [{"name": "bright"}], "tokens": digests})
        said = [
            opened.get("/v1/models", headers={"authorization": f"Bearer {token}"}).status_code for token in (old, new)
        ]
        assert said == [200 if token in valid else 401 for token in (old, new)]


def test_tokens_come_from_a_file_and_from_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "tokens"
    file.write_text(f"# who may call\n\n ann:{TOKEN}\nann: {TOKEN}-next\nc.d_e-1:with:colons,and-commas!\n")
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_tokens(None) == {}
    found = read_tokens(str(file))
    assert [trainer_of(token, found) for token in (TOKEN, TOKEN + "-next", "with:colons,and-commas!")] == [
        "ann", "ann", "c.d_e-1"]  # fmt: skip
    assert trainer_of("", found) is None and trainer_of("ann", found) is None and len(found) == 3
    assert not any(TOKEN in text for text in (*found, *found.values()))  # digests alone
    monkeypatch.setenv(VARIABLE, f"ben:another-long-token, dan:{'x' * 16},")
    assert trainer_of("another-long-token", read_tokens(None)) == "ben"
    both = read_tokens(str(file))
    assert (trainer_of(TOKEN, both), trainer_of("x" * 16, both)) == ("ann", "dan")


SECRET = "s3cret-of-twenty-chars"


@pytest.mark.parametrize(
    "line",
    [SECRET, f":{SECRET}", f"a b:{SECRET}", f"-ann:{SECRET}", f"ann:{SECRET} {SECRET}", f"ann:{SECRET}\x01",
     f"ann:{SECRET}ä", f"{'a' * 65}:{SECRET}", f"ann\n:{SECRET}", f"{SECRET}:ann", "ann:s3cret", "ann:"],
)  # fmt: skip
def test_a_bad_line_is_told_by_its_place_and_never_repeated(tmp_path, monkeypatch, line):
    monkeypatch.setenv(VARIABLE, f"ben:{TOKEN},{line}")
    with pytest.raises(UserError, match=f"{VARIABLE}, entry 2: ") as caught:
        read_tokens(None)
    assert "s3cret" not in str(caught.value) and TOKEN not in str(caught.value)
    monkeypatch.delenv(VARIABLE)
    (tmp_path / "tokens").write_text(f"ben:{TOKEN}\n\n{line}\n")
    with pytest.raises(UserError, match=r"line [34]: ") as caught:
        read_tokens(str(tmp_path / "tokens"))
    assert "s3cret" not in str(caught.value) and TOKEN not in str(caught.value)


def test_a_file_of_tokens_that_cannot_be_read_is_a_mistake_of_the_user(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe" + SECRET.encode("utf-16-le"))
    for path, reason in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "directory"),
        (tmp_path / "bytes", "not text"),
    ):
        with pytest.raises(UserError, match=f"http.tokens: .*{reason}"):
            read_tokens(str(path))


def test_one_token_is_not_two_trainers(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    file = tmp_path / "tokens"
    file.write_text(f"ann:{TOKEN}\nann:{TOKEN}\n")
    assert list(read_tokens(str(file)).values()) == ["ann"]
    file.write_text(f"ann:{TOKEN}\nben:{TOKEN}\n")
    with pytest.raises(UserError, match="line 2: the same token was given to another trainer") as caught:
        read_tokens(str(file))
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("text", ["", "# nobody yet\n\n"])
def test_a_file_without_a_token_does_not_open_the_service(tmp_path, monkeypatch, text):
    (tmp_path / "tokens").write_text(text)
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UserError, match="holds no token"):
        read_tokens(str(tmp_path / "tokens"))
    monkeypatch.setenv(VARIABLE, f"ann:{TOKEN}")
    assert list(read_tokens(str(tmp_path / "tokens")).values()) == ["ann"]
