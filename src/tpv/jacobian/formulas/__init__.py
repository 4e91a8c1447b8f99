"""One analytic formula per layer type: per-example gradients from a layer's input and its output gradient.

To add a layer type, write a :class:`~tpv.jacobian.formulas.base.LayerCall` for it in a file of this folder
(``embedding.py`` is the shortest to copy) and add one line to ``registry.py``.
"""
