"""Plausible wrong results of the capstone: each loses the points of its check and no others."""


def _results(changes: str) -> str:
    """A right dictionary of made-up numbers, spoiled by a line or two."""
    return f"""
def condition(values):
    return {{"seeds": list(range(len(values))), "values": values, "mean": fmean(values),
            "stderr": stdev(values) / len(values) ** 0.5}}

record = {{
    "claim": "Dosovitskiy et al. 2021, Table 8",
    "question": "Do positions matter with 100 images?",
    "metric": "test accuracy",
    "conditions": {{"none": condition([0.31, 0.35, 0.30]),
                   "learned": condition([0.61, 0.58, 0.66])}},
    "chosen_on_validation": {{"learning rate": {{"tried": [0.003, 0.01], "chosen": 0.01}}}},
    "test_looks": 1,
    "statement": "The learning rate was chosen on validation images that were never trained on, "
                 "and each model saw the test images once, at its end.",
}}
first = record["conditions"]["none"]
{changes}

def experiment():
    return record
"""


WRONG = {
    "q2": {
        "two seeds": _results('record["conditions"]["none"] = condition([0.31, 0.35])'),
        "one seed three times": _results('first["seeds"] = [0, 0, 0]'),
        "one condition": _results('del record["conditions"]["learned"]'),
        "a deviation with n": _results(
            'first["stderr"] = (sum((v - first["mean"]) ** 2 for v in first["values"]) / 9) ** 0.5'
        ),
        "a deviation in place of a standard error": _results(
            'first["stderr"] = stdev(first["values"])'
        ),
        "percent beside shares": _results('first["mean"] = 100 * first["mean"]'),
        "the best seed": _results('first["mean"] = max(first["values"])'),
        "tensors": _results('first["values"] = [torch.tensor(v) for v in first["values"]]'),
        "a tensor where nobody looks": _results(
            'first["mean"] = torch.tensor(first["values"], dtype=torch.float64).mean()'
        ),
        "a value that is not finite": _results('first["values"][0] = math.nan'),
        "a seed more than values": _results('first["seeds"].append(3)'),
        "the option never reached the model": _results(
            'record["conditions"]["learned"] = condition(list(first["values"]))'
        ),
        "the test set chose": _results('record["test_looks"] = 20'),
        "no word on validation": _results('record["statement"] = "We trained and it went well."'),
        "chosen among one": _results(
            'record["chosen_on_validation"]["learning rate"]["tried"] = [0.01]'
        ),
        "chosen and never tried": _results(
            'record["chosen_on_validation"]["learning rate"]["chosen"] = 0.03'
        ),
        "chosen for a condition that is not there": _results(
            'record["chosen_on_validation"]["learning rate"]["chosen"] = {"sincos": 0.01}'
        ),
        "one value tried twice": _results(
            'record["chosen_on_validation"]["learning rate"]["tried"] = [0.01, 0.01]'
        ),
        "values tried as a tensor": _results(
            'record["chosen_on_validation"]["learning rate"]["tried"] = torch.tensor([0.01, 0.03])'
        ),
        "chosen as text": _results(
            'record["chosen_on_validation"]["learning rate"]["chosen"] = {"none": "0.01"}'
        ),
        "a condition named by a pair": _results(
            'record["conditions"]["none", 100] = record["conditions"].pop("none")'
        ),
        "a condition named by a number": _results(
            'record["conditions"][100] = record["conditions"].pop("none")'
        ),
        "a metric without words": _results('record["metric"] = " "'),
        "a paper without a place": _results('record["claim"] = "Dosovitskiy et al. 2021"'),
        "more kept, as tensors": _results('record["losses"] = {"none": torch.ones(3)}'),
        "no question": _results('record["question"] = "Positions matter."'),
        "a claim from nowhere": _results('record["claim"] = "the ViT paper"'),
        "nothing chosen is said by None": _results('record["chosen_on_validation"] = None'),
        "something is missing": _results('del record["statement"]'),
        "nothing is returned": """
def experiment():
    results = {"claim": "Dosovitskiy et al. 2021, Table 8"}
""",
        "a range of seeds": _results('first["seeds"] = range(3)'),
        "seeds as floats": _results('first["seeds"] = [0.0, 1.0, 2.0]'),
        "seeds as text": _results('first["seeds"] = ["a", "b", "c"]'),
    },
}
