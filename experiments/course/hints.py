"""Hints: what to think about next, by exercise, gradient and kind of mistake. None is the answer.

A hint asks a question, or names a small case that the learner can work out, rather than the
formula. The kinds are those of :mod:`experiments.course.words`.
"""

from __future__ import annotations

from typing import NamedTuple


class Hint(NamedTuple):
    """``names`` and ``kinds``, separated by spaces, say what it is for; '' is everything."""

    names: str
    kinds: str
    text: str

    def fits(self, name: str, kind: str) -> bool:
        return (not self.names or name in self.names.split()) and (
            not self.kinds or kind in self.kinds.split(", ")
        )


def hint_for(exercise: str, name: str, kind: str) -> str:
    """The first hint that fits: the exercise's own for the kind, one for the kind in general, the
    exercise's own for anything."""
    own = HINTS[exercise]
    hints = (
        *(hint for hint in own if hint.kinds),
        *GENERAL,
        *(hint for hint in own if not hint.kinds),
    )
    return next((hint.text for hint in hints if hint.fits(name, kind)), "")


GENERAL = (
    Hint("", "upstream", "Every gradient is what arrives from above times a local derivative. "
         "You have the local derivative; what arrives is missing."),
    Hint("", "not linear", "What arrives from above enters a gradient once, as a factor of every "
         "term. Look for a term without it, or for a max, a square or a sign taken of it."),
    Hint("", "batch", "A number in your answer is right for the batch at hand only. Where does "
         "it come from, and what is it called in the shapes above?"),
    Hint("", "not finite", "Somewhere there is a division by 0, or a logarithm or root of a "
         "number that has none. Which of the given numbers can be 0?"),
    Hint("", "clipped", "A gradient is not cut off: however large it is, it is the slope."),
    Hint("", "sign", "The numbers are right but for the sign. Make the input a little larger: "
         "does the result grow or fall?"),
)  # fmt: skip

HINTS = {
    "gates": (
        Hint("dx dy", "factor", "On its way back, df comes to the product first and to the sum "
             "after it. What does the product do to what passes back? Is anything counted twice?"),
        Hint("dz", "swapped, factor", "At f = q z, ask how much f changes when z changes by a "
             "little and q stays. Is it z that decides that?"),
        Hint("dx dy", "swapped", "At f = q z, ask how much f changes when q changes by a little "
             "and z stays."),
        Hint("dx dy", "", "First find dq, the gradient by q, at the product. Then ask how much q "
             "changes when this input changes by 1."),
        Hint("dz", "", "At f = q z, take q = 3. When z changes by 1, by how much does f change?"),
    ),
    "fork": (
        Hint("dx", "swapped, missing term", "x goes into two gates. Your answer has one path "
             "from x to f; where is the other?"),
        Hint("dx", "term sign", "Both paths carry a gradient back to x. When x grows, each of a "
             "and b grows or falls on its own: which sign has each?"),
        Hint("dx", "constant", "When x changes, a and b change together, and f feels both "
             "changes in full. Is a mean of the two the right way to join them?"),
        Hint("dx", "not linear", "Two gradients meet where x forks. Neither wins, and neither "
             "may lose its df: f feels both changes."),
        Hint("dx", "", "First find da and db, the gradients by a and by b, at the product. Then "
             "follow x into each gate. How do two changes of f join?"),
        Hint("dy", "factor", "y goes through two products on its way to f. Each multiplies by "
             "its other input; you have one of the two."),
        Hint("dy dz", "", "First find da and db at f = a b: how much does f change when a "
             "changes by a little, and what decides that, a or b? Then go one gate further back."),
    ),
    "sigmoid": (
        Hint("", "factor", "The slope of the sigmoid has two factors, both made from y, and dy "
             "comes once. At y near 0 and at y near 1 the curve is flat: does your slope vanish "
             "at both ends, and is it 1/4 in the middle, where y is 1/2?"),
        Hint("", "sign", "The sigmoid rises everywhere, so its slope is positive. Which order do "
             "the terms of a difference need for that?"),
        Hint("", "summed, shape", "Every entry of y comes from one entry of x alone, so dx has "
             "as many entries as x. Is anything to be added up?"),
        Hint("", "", "Test your slope where you know it: in the middle, y = 1/2, it is 1/4, and "
             "at both ends, y = 0 and y = 1, it is 0. Remember that y is the output already, and "
             "that tanh is another function."),
    ),
    "relu": (
        Hint("", "not zero there", "Look at an entry where x is negative: y is 0 there, and "
             "stays 0 when x changes a little. What does that say about the slope?"),
        Hint("", "zero there, some, not linear", "What decides whether the gradient passes: the "
             "sign of x, or that of dy? A negative gradient is a gradient, too."),
        Hint("", "sign", "Where x is positive, y is x itself. When x grows by 1, what does y do?"),
        Hint("", "factor", "Where x is positive, y = x, whose slope is the same at x = 1 and at "
             "x = 5. Does yours depend on how large x is?"),
        Hint("", "", "Draw max(x, 0). Left of 0 it is flat, right of 0 it rises by 1 for each 1 "
             "of x. The slope is that of the place where x is, whatever its size."),
    ),
    "neuron": (
        Hint("db", "constant, varying", "First find dz, at E = (z - t)^2 / 2. The exponent comes "
             "down as a factor: what does it leave of the half, and what power of z - t is left?"),
        Hint("db", "zero", "b is added to z, so E changes when b changes. By how much does z "
             "change when b changes by 1?"),
        Hint("db", "sign", "If z is too large, z - t is positive, and making b larger makes E "
             "larger. Which sign has db then?"),
        Hint("dw dx", "swapped", "z = w[0] x[0] + w[1] x[1] + ... When w[0] changes by a little, "
             "what decides by how much z changes?"),
        Hint("dw dx", "shape", "E is one number, but each of the n weights has a slope of its "
             "own: a gradient has the shape of what it belongs to."),
        Hint("", "", "First find dz, the gradient by z, at E = (z - t)^2 / 2. Then ask what each "
             "input of z = w.x + b is multiplied by."),
    ),
    "linear": (
        Hint("db", "not summed, shape", "All N examples use the same b, which is one row. How do "
             "the gradients join where a wire forks?"),
        Hint("db dW", "mean for sum", "Is there a mean in forward? Where a parameter is used by "
             "several examples, the paths join as at any fork."),
        Hint("db", "summed", "b has an entry for each output, and so has db. Over which axis do "
             "the examples lie?"),
        Hint("", "transposed", "Write the shapes below the factors. A product of (a, b) and (b, "
             "c) is (a, c): which factor comes first, and which is transposed, to end with the "
             "shape that is asked?"),
        Hint("dW", "", "W[i, j] multiplies x[n, i] on the way to y[n, j], for every example n. "
             "So dW[i, j] has a term for every n: which?"),
        Hint("dx", "", "x[n, i] goes to every y[n, j]. So dx[n, i] has a term for every j: which?"),
        Hint("db", "", "b[j] is added to y[n, j] for every n. So db[j] has a term for every n: "
             "which?"),
    ),
    "softmax": (
        Hint("", "sum for mean, mean for sum, constant", "E is a mean over what, and of "
             "how many? Each example has its share in it, no more and no less."),
        Hint("", "sign", "Gradient descent goes against dz. For the right class z should rise: "
             "which sign has dz there?"),
        Hint("", "rows", "Add the same number to a whole row of z: p does not change, and so E "
             "does not. What does a row of dz add up to, then? For the right class there is a "
             "term that the other classes do not have."),
        Hint("", "", "Take one example with probabilities 0.2, 0.3, 0.5 and the right class 2. E "
             "falls when z[2] rises, and rises with the others, the more the more probable they "
             "are. The derivative by p is not asked: much of it cancels on the way to z."),
    ),
    "network": (
        Hint("dc", "not summed, shape", "c is one number that all examples use. How do their "
             "gradients join?"),
        Hint("dc", "sum for mean, constant", "E is a mean over the examples. How large is "
             "the share of one of them?"),
        Hint("dc", "sign", "If p is larger than t, then z should fall. Descent goes against the "
             "gradient: which sign has dz?"),
        Hint("dc", "", "First dz, the gradient by z. Through p it is a product of two "
             "derivatives, of which much cancels; what is left has no factor p (1 - p). Then ask "
             "who shares c."),
        Hint("db", "mean for sum", "The mean is in E, and dz has it already. Do examples that "
             "share b add up, or is there a second mean?"),
        Hint("dv", "", "z[n] = sum over j of h[n, j] v[j]. So dv[j] has a term for every example "
             "n: which? A product of sums is not a sum of products."),
        Hint("db dW", "", "Between dh and b there is the tanh: what is its slope, written with "
             "h? And how did dh come from dz, through which weights?"),
        Hint("dx", "", "x goes through W into the hidden layer, as in the linear layer. Which "
             "gradient arrives there?"),
    ),
    "max_pool": (
        Hint("", "shape", "x has two numbers for each of y, and dx has the shape of x. What does "
             "the smaller number of a pair get?"),
        Hint("", "not zero there", "When the smaller number of a pair changes a little, does y "
             "notice?"),
        Hint("", "sign", "y is the larger number itself. When it grows by 1, what does y do?"),
        Hint("", "factor", "y is the larger number itself, unchanged. With what slope does y "
             "follow it: does that depend on how large it is?"),
        Hint("", "", "Take one pair, (3, 5), with y = 5. When the 5 becomes 5.1, what does y do? "
             "And when the 3 becomes 3.1? So which of the two gets dy, and how much of it?"),
    ),
    "batch_norm": (
        Hint("db dg", "mean for sum, not summed, shape", "All examples share g and b. How do "
             "their gradients join, and is there a mean in how y is made from u?"),
        Hint("dg", "", "g multiplies u in every example. What is multiplied with what, before "
             "the sum over the batch?"),
        Hint("db", "", "b is added in every example. So db has a term for each: which?"),
        Hint("dx", "columns", "Add the same number to a whole column of x: m moves with it, and "
             "y does not change. So each column of dx adds up to 0, and yours do not. Which path "
             "back to x takes care of that? Mind the axis, which is the batch's, and whether a "
             "sum or a mean is needed."),
        Hint("dx", "spread", "Stretch a column of x about its mean: s grows with it, and y does "
             "not change. So u dx adds up to 0 in each column, and yours does not. Which path "
             "back to x takes care of that? Mind its sign, and whether a sum or a mean is needed."),
        Hint("dx", "", "The two paths through m and s seem to be there. Go back gate by gate for "
             "factors: from y to u, and from u to x, what is multiplied, and what divided?"),
    ),
    "convolution": (
        Hint("dx", "reversed", "x[2] goes into y[2] through w[0], into y[1] through w[1], into "
             "y[0] through w[2]. As the place in w goes up, where does the place in y go?"),
        Hint("dw", "reversed, places, shifted", "w[0] meets x[i] at y[i], and w[1] meets x[i + "
             "1]. So which part of x belongs to dw[0]?"),
        Hint("dx", "shape", "x is longer than y. Its first entry goes into one y only, one in "
             "the middle into K of them: every entry of x gets something."),
        Hint("dx", "shifted", "x[0] goes into y[0] alone. What has dx[0] to be, then?"),
        Hint("dw", "mean for sum, constant", "The same w[k] is used at every place i. The "
             "gradients of its uses join as at any fork: is there a mean in forward?"),
        Hint("dw", "", "w[k] multiplies x[i + k] on the way to y[i], for every place i. So dw[k] "
             "has a term for every i: which?"),
        Hint("dx", "", "x[j] goes into every y[i] with j = i + k, each time through another "
             "w[k]. So dx[j] has a term for every k: which?"),
    ),
    "attention": (
        Hint("dv", "", "y = p v is a product of matrices, like x W in the linear layer. v has "
             "the place of W."),
        Hint("dk dq", "transposed, shape", "s = q k^T: each entry s[n, m] is a product of row n "
             "of q and row m of k. Write the shapes below the factors; ds is (N, M)."),
        Hint("dk dq", "constant", "Between q k^T and the softmax the scores are divided by "
             "something. What passes back through a division?"),
        Hint("dk dq", "", "Check ds, what comes out of the softmax: the same number added to a "
             "row of s leaves p as it is, so every row of ds has to add up to 0. Which term of "
             "the softmax's backward makes it so, along which axis, with which sign?"),
    ),
}  # fmt: skip
