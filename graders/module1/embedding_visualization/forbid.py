"""What may not be imported: packages that hold the models, the gradients or the map."""

from llmkata.checks import Forbid

_MODEL = "{} trains the model for you: here its loss, gradients and steps are yours to write."

FORBID = Forbid(
    modules={name: _MODEL.format(name) for name in ("gensim", "fasttext")}
    | {
        "sklearn": "sklearn holds a finished t-SNE: calibrating the perplexity and the gradient are the exercise.",
        "torch": "The gradients are derived by hand here, in NumPy; torch would derive them for you.",
        "scipy.special": "np.logaddexp and np.exp are enough for a stable σ and log σ: that is part of task 2.",
        "scipy.spatial": "pdist and cdist are task 5: one matrix product gives all distances.",
        "scipy.optimize": "The bisection of a row's precision is yours to write.",
    }
)
