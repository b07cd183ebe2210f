from codellama_jax.serving.logprobs import pieces


class CountingTokenizer:
    """Spells id i "<i>" and counts how often it decodes."""

    decoded = 0

    def decode(self, ids: list[int], leading_space: bool = True) -> str:
        self.decoded += 1
        return "".join(f"<{i}>" for i in ids)


def test_a_repeated_id_is_decoded_once():
    tokenizer = CountingTokenizer()
    listed = pieces(tokenizer, [7, 8, 7, 7])
    assert [entry["piece"] for entry in listed] == ["<7>", "<8>", "<7>", "<7>"]
    assert [entry["id"] for entry in listed] == [7, 8, 7, 7]
    assert tokenizer.decoded == 2
