"""Run by test_readers.py in environments that have PyTorch and one program: what that finds in folders of models.

python reader.py PROGRAM JOBS RESULTS
"""

import json
import sys

LONG = "kana mipo lona. " * 100
SENTENCES = [
    "kana mipo <mask> tena.",
    "Caf\u00e9 \u2603 \u0e1b\u0e23\u0e30\u0e40\u0e17\u0e28 \u5929\u6c14 \U0001f44d\U0001f3fd",
    "  two  spaces\tand\na line",
    "<s> [SEP] <pad> [UNK]",
    "",
]
KINDS = {
    "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}


def sentences(tokenizer):
    return [sentence.replace("<mask>", tokenizer.mask_token) for sentence in SENTENCES]


def by_transformers(folder, task):
    """Return what Transformers finds, and which weights it lacks or does not know."""
    import transformers

    model, loaded = getattr(transformers, KINDS[task]).from_pretrained(folder, output_loading_info=True)
    problems = [*loaded["missing_keys"], *loaded["unexpected_keys"], *loaded["mismatched_keys"]]
    return {**found(model, transformers.AutoTokenizer.from_pretrained(folder), task), "problems": problems}


def found(model, tokenizer, task):
    """Return what Transformers makes of sentences with a model and a tokenizer."""
    import torch
    from transformers import pipeline

    model.eval()
    texts = sentences(tokenizer)
    batch = tokenizer(texts[:2], return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**batch).logits
    ask = pipeline(task, model=model, tokenizer=tokenizer)
    cut = {"fill-mask": {"tokenizer_kwargs": {"truncation": True}}, "text-classification": {"truncation": True}}
    return {
        "ids": [tokenizer(text)["input_ids"] for text in texts],
        "pair": tokenizer("kana", "mipo tena")["input_ids"],
        "decoded": [tokenizer.decode(tokenizer(text)["input_ids"]) for text in texts[:3]],
        "longest": tokenizer.model_max_length,
        "special_ids": sorted(tokenizer.all_special_ids),
        "cut": tokenizer(LONG, truncation=True)["input_ids"],
        "logits": without_padding(logits, batch["attention_mask"]),
        "answers": ask(texts[0]),
        "long": ask(f"{tokenizer.mask_token} {LONG}", **cut.get(task, {})),
        "problems": [],
    }


def without_padding(logits, mask):
    """Return the scores of a batch as lists: (sentences, classes), or of the tokens that are no padding."""
    return logits[mask > 0].tolist() if logits.ndim == 3 else logits.tolist()


def by_sentence_transformers(folder, task):
    """Return vectors of texts, one of them longer than the model takes."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")
    return {"longest": model.max_seq_length, "vectors": model.encode(stripped(model.tokenizer)).tolist()}


def stripped(tokenizer):
    """Return sentences without spaces around them, which versions of sentence-transformers remove or keep."""
    return [sentence.strip() for sentence in [*sentences(tokenizer), LONG]]


def vectors(model, tokenizer):
    """Return what sentence-transformers makes of a model without settings of its own: means over the last layer."""
    import torch

    inputs = tokenizer(stripped(tokenizer), return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        hidden = model.base_model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    return ((hidden * mask).sum(1) / mask.sum(1)).tolist()


def by_onnxruntime(folder, task):
    """Return the logits of the model in ONNX's format, exported with one batch and run with another."""
    import onnxruntime
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = (["a", LONG[:60], "b"], sentences(tokenizer)[:2])
    inputs = [tokenizer(some, return_tensors="pt", padding=True) for some in texts]
    names = list(inputs[0])
    program = torch.onnx.export(
        getattr(transformers, KINDS[task]).from_pretrained(folder).eval(),
        kwargs=dict(inputs[0]),
        input_names=names,
        output_names=["logits"],
        dynamic_shapes={name: {0: "batch", 1: "tokens"} for name in names},
        dynamo=True,
    )
    program.save(f"{folder}.onnx")
    session = onnxruntime.InferenceSession(f"{folder}.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {name: inputs[1][name].numpy() for name in names})
    return {"logits": without_padding(logits, inputs[1]["attention_mask"].numpy())}


def main() -> None:
    """Read each folder, and write what was found, or the error, by the name of the job."""
    program, jobs, results = sys.argv[1:]
    read = globals()[f"by_{program}"]
    content = {}
    with open(jobs, encoding="utf-8") as file:
        for name, job in json.load(file).items():
            try:
                content[name] = read(**job)
            except Exception as error:
                content[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
    with open(results, "w", encoding="utf-8") as file:
        json.dump(content, file, default=float)


if __name__ == "__main__":
    main()
