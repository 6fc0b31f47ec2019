"""The endpoints say what the library says, in the shapes that clients of the Hugging Face inference API expect."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi", reason="the service needs the extra `serve`")
from huggingface_hub import InferenceClient, constants
from huggingface_hub.errors import HfHubHTTPError

from unmask.evaluate.pll import Scorer
from unmask.tasks.fill import Filler

TEXT = "The nurse watches the [MASK] in the garden."
TWO = "The [MASK] watches the doctor in the <mask>."


@pytest.fixture(scope="module")
def service(tiny_bert, serving):
    with serving({"tiny": tiny_bert, "tiny-2": tiny_bert}, max_tokens=512) as running:
        yield running


@pytest.fixture(scope="module")
def filler(tiny_bert):
    return Filler.load(tiny_bert, device="cpu")


@pytest.fixture
def client(service, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # or it would not even ask the loopback
    return InferenceClient(model=f"{service.url}/models/tiny")


def test_the_client_of_the_hub_fills_a_mask(client, filler):
    found = client.fill_mask(TEXT)
    best = filler.fill(TEXT, top_k=5)[0]
    assert [(one.token, one.token_str, one.sequence) for one in found] == [(one.token_id, one.token, one.sequence) for one in best]
    assert [one.score for one in found] == pytest.approx([one.score for one in best], rel=1e-5)
    assert len(client.fill_mask(TEXT, top_k=2)) == 2


def test_the_client_of_the_hub_scores_targets(client, filler):
    words = ["doctor", "lawyer", "the farmer"]
    found = client.fill_mask(TEXT, targets=words)
    scores = {one.token: one.score for one in filler.fill(TEXT, targets=words)[0]}
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert {one.token_str: one.score for one in found} == pytest.approx(scores, rel=1e-5)
    assert len(client.fill_mask(TEXT, targets=words, top_k=1)) == 1


def test_several_masks_have_a_list_each(client, filler):
    found = client.fill_mask(TWO, top_k=3)
    best = filler.fill(TWO, top_k=3, independent=True)
    assert [[one["token"] for one in mask] for mask in found] == [[one.token_id for one in mask] for mask in best]


def test_the_client_of_the_hub_is_told_what_is_wrong(client):
    with pytest.raises(HfHubHTTPError, match="there is no mask in 'Nothing to fill.'"):
        client.fill_mask("Nothing to fill.")
    with pytest.raises(HfHubHTTPError, match="'zzzqqq☃' cannot be written"):
        client.fill_mask(TEXT, targets=["doctor", "zzzqqq☃"])


def test_a_list_has_an_answer_for_each_text(service):
    status, found = service.post("/models/tiny", {"inputs": [TEXT, "no mask here", TWO], "parameters": {"top_k": 2}})
    assert status == 200
    assert len(found[0]) == 2 and found[0][0]["token_str"] in found[0][0]["sequence"]
    assert "there is no mask" in found[1]["error"]
    assert [len(mask) for mask in found[2]] == [2, 2]
    status, found = service.post("/models/tiny", {"inputs": ["no mask", "none either"]})
    assert status == 422 and [one["index"] for one in found["detail"]] == [0, 1]


def test_parameters_of_our_own(service, filler):
    body = {"inputs": TEXT, "parameters": {"targets": ["doctor", "lawyer"], "renormalize": True}}
    assert sum(one["score"] for one in service.post("/models/tiny", body)[1]) == pytest.approx(1)
    found = service.post("/models/tiny", {"inputs": TEXT, "parameters": {"vocabulary": ["farmer", "judge"], "top_k": 9}})[1]
    assert {one["token_str"] for one in found} == {"farmer", "judge"}
    found = service.post("/models/tiny", {"inputs": TEXT, "parameters": {"whole_words": True, "top_k": 40}})[1]
    assert [one["token_str"] for one in found] == [one.token for one in filler.fill(TEXT, whole_words=True, top_k=40)[0]]


def test_masks_are_filled_together(service, filler):
    """Answers of requests that run together are those of the library, each as wide a search as it asked for."""
    ones = [{"joint": True, "top_k": 3}, {"joint": True, "top_k": 3, "beam": 20}, {"joint": True, "top_k": 12}]
    with ThreadPoolExecutor(len(ones)) as pool:
        answers = list(pool.map(lambda given: service.post("/models/tiny", {"inputs": [TWO, TEXT], "parameters": given}), ones))
    for given, (status, (two, one)) in zip(ones, answers, strict=True):
        best = filler.fill(TWO, top_k=given["top_k"], beam=given.get("beam"))
        assert status == 200 and one["joint"] == [] and len(one["masks"]) == 1
        assert [tuple(found["tokens"]) for found in two["joint"]] == [found.token_ids for found in best.joint]
        assert [found["log_prob"] for found in two["joint"]] == pytest.approx([found.log_prob for found in best.joint], rel=1e-4)
        assert (two["joint"][0]["token_strs"], two["joint"][0]["sequence"]) == (list(best.joint[0].tokens), best.joint[0].sequence)
        assert [[found["token"] for found in mask] for mask in two["masks"]] == [[found.token_id for found in mask] for mask in best]
    page = service.post("/api/fill", {"model": "tiny", "text": TWO, "top_k": 3, "joint": True})[1]
    assert [found["text"] for found in page["joint"]] == [found["sequence"] for found in answers[0][1][0]["joint"]]
    assert all(
        found["text"][start:].startswith(token)
        for found in page["joint"]
        for start, token in zip(found["starts"], found["tokens"], strict=True)
    )


def test_blanks_are_filled_by_words_of_several_pieces(service, filler):
    text = "The nurse watches the ___ in the garden."
    found = service.post("/models/tiny", {"inputs": text, "parameters": {"max_pieces": 3, "top_k": 8}})[1]
    best = filler.fill(text, max_pieces=3, top_k=8)[0]
    assert [one["token_ids"] for one in found] == [list(one.token_ids) for one in best] and any(len(one["token_ids"]) > 1 for one in found)


def test_a_text_longer_than_the_model_says_so(service):
    long = "The nurse watches the doctor. " * 200 + TEXT
    status, found = service.post("/models/tiny", {"inputs": long})
    assert status == 200 and all(one["truncated"] for one in found)
    assert not any(one["truncated"] for one in service.post("/models/tiny", {"inputs": TEXT})[1])


def test_scores_are_those_of_the_library(service, tiny_bert):
    texts = ["The nurse watches the doctor.", "The judge pays the sailor in the court often."]
    expected = [one.to_dict() for one in Scorer.load(tiny_bert, device="cpu").score(texts)]
    status, found = service.post("/models/tiny/score", {"inputs": texts})
    assert status == 200
    for one, other in zip(found, expected, strict=True):
        assert one.pop("log_probs") == pytest.approx(other.pop("log_probs"), abs=1e-5)
        assert one["pseudo_perplexity"] == pytest.approx(other["pseudo_perplexity"], rel=1e-5)
        assert one["tokens"] == other["tokens"]
    alone = service.post("/score", {"inputs": texts[0], "model": "tiny"})[1]
    assert alone["pseudo_perplexity"] == pytest.approx(expected[0]["pseudo_perplexity"], rel=1e-5)
    sampled = service.post("/models/tiny/score", {"inputs": texts[1], "parameters": {"method": "sampled", "sample": 3}})[1]
    assert sampled["num_scored_tokens"] == 3


def test_the_page_gets_surprisals_with_their_places(service):
    text = "The nurse, Ölaf's <script>, watches."
    status, found = service.post("/api/score", {"model": "tiny", "text": text})
    assert status == 200
    assert all(one["text"] == text[one["start"] : one["end"]] and one["surprisal_nats"] > 0 for one in found["tokens"])
    assert "".join(one["text"] for one in found["tokens"]) == text.replace(" ", "")
    assert found["pseudo_perplexity"] > 1 and found["windows"] == 1 and not found["truncated"]


def test_the_page_gets_candidates(service, filler):
    status, found = service.post("/api/fill", {"model": "tiny", "text": TWO.replace("<mask>", "___"), "top_k": 3})
    assert status == 200 and not found["truncated"]
    best = filler.fill(TWO, top_k=3, independent=True)
    for mask, expected in zip(found["masks"], best, strict=True):
        assert [one["token"] for one in mask["candidates"]] == [one.token for one in expected]
        assert {"token", "word", "score", "logprob", "text"} <= set(mask["candidates"][0])
    found = service.post("/api/fill", {"model": "tiny", "text": TEXT, "targets": ["judge", "zzzqqq☃", "nurse"]})[1]
    first, wrong, last = found["masks"][0]["candidates"]
    assert (first["token"], last["token"]) == ("judge", "nurse")  # in their order
    assert wrong["score"] is None and "vocabulary" in wrong["error"]


def test_tokens_have_their_places(service):
    text = "The nurse watches."
    found = service.post("/api/tokenize", {"model": "tiny", "text": text})[1]
    assert [text[one["start"] : one["end"]] for one in found["tokens"]] == ["The", "nurse", "watches", "."]
    whole = service.post("/models/tiny/tokenize", {"inputs": [text, "a" * 99]})[1]
    assert [one["token"] for one in whole[0]["tokens"]][:: len(whole[0]["tokens"]) - 1] == ["[CLS]", "[SEP]"]
    assert whole[0]["tokens"][0]["special"] and not whole[0]["truncated"]
    assert service.post("/tokenize", {"inputs": "nurse " * 600, "model": "tiny-2"})[1]["truncated"]


def test_models_are_listed(service):
    service.post("/models/tiny", {"inputs": TEXT})
    (first, _), num = service.ask("GET", "/models")[1]["models"], service.ask("GET", "/models/tiny")[1]["num_loads"]
    assert first["name"] == "tiny" and first["task"] == "fill-mask" and first["path_name"] == "tiny-bert"
    assert (first["mask_token"], first["max_length"], first["backend"], first["precision"]) == ("[MASK]", 512, "torch", "fp32")
    assert first["vocab_size"] > 50 and num == 1


def test_one_model_of_several_must_be_named(service):
    status, found = service.post("/score", {"inputs": "A text."})
    assert status == 422 and "tiny, tiny-2" in found["error"]


def test_the_state_is_told(service):
    assert service.ask("GET", "/health") == (200, {"status": "ok"})
    status, found = service.ask("GET", "/ready")
    assert status == 200 and found["status"] == "ready" and set(found["models"]) == {"tiny", "tiny-2"}


def test_counters_for_prometheus(service):
    service.post("/models/tiny", {"inputs": TEXT})
    service.post("/models/tiny", {"inputs": "no mask"})
    status, headers, text = service.ask_all("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    lines = text.decode()
    counts = dict(re.findall(r'unmask_requests_total\{endpoint="/models/\{name\}",status="(\d+)"\} ([\d.]+)', lines))
    assert float(counts["200"]) >= 1 and float(counts["422"]) >= 1
    assert re.search(r'unmask_turn_requests_count\{model="tiny",task="fill-mask"\} [1-9]', lines)


def test_the_docs_ask_no_other_server(service):
    status, headers, page = service.ask_all("GET", "/docs")
    text = page.decode()
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text) and "<script" not in text
    spec = service.ask("GET", "/openapi.json")[1]
    assert {"/models/{name}", "/score", "/tokenize", "/health", "/ready", "/metrics", "/models"} <= set(spec["paths"])
    assert all(path in text for path in spec["paths"])
    refs = set(re.findall(r'"#/components/schemas/(\w+)"', str(spec).replace("'", '"')))
    assert refs and refs <= set(spec["components"]["schemas"])


def save_head(tiny_bert, folder, kind, labels):
    """Save a model with a head of random weights for a task."""
    import torch
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        names = dict(enumerate(labels))
        config = transformers.BertConfig.from_pretrained(
            tiny_bert, num_labels=len(labels), id2label=names, label2id={name: number for number, name in names.items()}
        )
        getattr(transformers, kind)(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tiny_bert, tmp_path_factory):
    return save_head(tiny_bert, tmp_path_factory.mktemp("models") / "classifier", "BertForSequenceClassification", ["farm", "court", "sea"])


@pytest.fixture(scope="module")
def tagger(tiny_bert, tmp_path_factory):
    labels = ["O", "B-person", "I-person", "B-place", "I-place"]
    return save_head(tiny_bert, tmp_path_factory.mktemp("models") / "tagger", "BertForTokenClassification", labels)


def test_the_client_of_the_hub_classifies_texts(serving, classifier, monkeypatch):
    from unmask.tasks.classify import Classifier

    texts = ["The sailor calls the judge.", "The farmer thanks the nurse in the garden."]
    expected = Classifier.load(classifier, device="cpu").predict(texts)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving({"kind": classifier}) as service:
        client = InferenceClient(model=f"{service.url}/models/kind")
        found = client.text_classification(texts[0])
        assert {one.label: one.score for one in found} == pytest.approx(expected[0].scores, rel=1e-5)
        assert found[0].label == expected[0].label and len(client.text_classification(texts[0], top_k=1)) == 1
        both = service.post("/models/kind", {"inputs": [*texts, " "]})[1]
        assert [one[0]["label"] for one in both[:2]] == [one.label for one in expected] and "empty" in both[2]["error"]
        assert service.ask("GET", "/models/kind")[1]["task"] == "text-classification"
        for path, body in (("/models/kind/score", {"inputs": texts}), ("/api/fill", {"text": "[MASK]"}), ("/models/kind", {"inputs": " "})):
            assert service.post(path, body)[0] == 422
        assert service.post("/tokenize", {"inputs": texts})[0] == 200


def test_the_client_of_the_hub_finds_entities(serving, tagger, monkeypatch):
    from unmask.tasks.ner import Tagger

    texts = ["The sailor calls the judge.", "The farmer thanks the nurse in the garden."]
    expected = Tagger.load(tagger, device="cpu").predict(texts)
    assert all(len(one) for one in expected)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving({"who": tagger}) as service:
        client = InferenceClient(model=f"{service.url}/models/who")
        found = client.token_classification(texts[0])
        assert [(one.entity_group, one.word, one.start, one.end) for one in found] == [
            (one.label, one.text, one.start, one.end) for one in expected[0]
        ]
        assert [one.score for one in found] == pytest.approx([one.score for one in expected[0]], rel=1e-4)
        label = found[0].entity_group
        assert all(one.entity_group != label for one in client.token_classification(texts[0], ignore_labels=[label]))
        both = service.post("/models/who", {"inputs": [*texts, " "]})[1]
        assert [len(one) for one in both[:2]] == [len(one) for one in expected] and "empty" in both[2]["error"]
        for wrong in ({"aggregation_strategy": "none"}, {"stride": 8}):
            status, answer = service.post("/models/who", {"inputs": texts[0], "parameters": wrong})
            assert status == 422 and "leave them out" in answer["error"]


def test_the_client_of_the_hub_is_answered(serving, answering, monkeypatch):
    from unmask.tasks.qa import Answerer

    question, text = "Where is the help?", "The judge calls the lawyer. The nurse helps the doctor in the harbour today."
    answerer = Answerer.load(answering.folder, device="cpu")
    expected, none = answerer.answer(question, text), answerer.answer(question, "The judge calls the lawyer.")
    assert expected.text == "harbour" and none.text is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving({"who": answering.folder}) as service:
        client = InferenceClient(model=f"{service.url}/models/who")
        found = client.question_answering(question, text)
        assert (found.answer, found.start, found.end) == ("harbour", text.index("harbour"), text.index("harbour") + 7)
        assert found.score == pytest.approx(expected.score, rel=1e-4)
        several = client.question_answering(question, text, top_k=3)
        assert [one.answer for one in several] == [one.text for one in expected.answers[:3]]
        silent = client.question_answering(question, "The judge calls the lawyer.")
        assert (silent.answer, silent.start, silent.end) == ("", 0, 0) and silent.score == pytest.approx(none.no_answer, rel=1e-4)
        assert (
            client.question_answering(question, "The judge calls the lawyer.", handle_impossible_answer=False).answer
            == none.answers[0].text
        )
        asked = [{"question": question, "context": ["The judge.", text]}, {"question": " ", "context": text}]
        one, failed = service.post("/models/who", {"inputs": asked})[1]
        assert (one["answer"], one["context"]) == ("harbour", 1) and "the question is empty" in failed["error"]
        assert service.ask("GET", "/models/who")[1]["task"] == "question-answering"
        for wrong in ({"max_seq_len": 8}, {"align_to_words": False}, {"doc_stride": 4}, {"top_k": 21}):
            status, answer = service.post("/models/who", {"inputs": asked[0], "parameters": wrong})
            assert status == 422 and next(iter(wrong)) in answer["error"]
        assert service.post("/models/who", {"inputs": "a text"})[0] == 422


def test_exports_in_int8_are_served(serving, tiny_bert, classifier, tagger, answering, tmp_path):
    """Each answers as the same export does in Python, which is not to the digit what the model says."""
    pytest.importorskip("onnxruntime")
    from unmask.data.tokenizer import load_tokenizer
    from unmask.export.onnx import export_model
    from unmask.model.load import load_model
    from unmask.tasks.classify import Classifier
    from unmask.tasks.ner import Tagger
    from unmask.tasks.qa import Answerer

    heads = {"sequence_classification": classifier, "token_classification": tagger, "question_answering": answering.model}
    made = {
        head: export_model(load_model(folder, head=head), load_tokenizer(folder), tmp_path / head, int8=True)
        for head, folder in {"masked_lm": tiny_bert, **heads}.items()
    }
    text, question = "The nurse helps the doctor in the harbour today.", "Where is the help?"
    with serving(made) as service:
        scores = Classifier.load(made["sequence_classification"]).predict(text).scores
        (found,) = service.post("/models/sequence_classification", {"inputs": text})[1]
        assert {one["label"]: one["score"] for one in found} == pytest.approx(scores, rel=1e-5)
        assert scores != pytest.approx(Classifier.load(classifier).predict(text).scores, rel=1e-5)
        entities = Tagger.load(made["token_classification"]).predict(text)
        found = service.post("/models/token_classification", {"inputs": text})[1]
        assert [(one["entity_group"], one["word"]) for one in found] == [(one.label, one.text) for one in entities]
        answer = Answerer.load(made["question_answering"]).answer(question, text)
        found = service.post("/models/question_answering", {"inputs": {"question": question, "context": text}})[1]
        assert found["answer"] == answer.text == "harbour" and found["score"] == pytest.approx(answer.score, rel=1e-4)
        assert len(service.post("/models/masked_lm", {"inputs": TEXT})[1]) == 5
        for info in service.ask("GET", "/models")[1]["models"]:
            assert (info["backend"], info["precision"], info["loaded"]) == ("onnx", "int8", True), info
