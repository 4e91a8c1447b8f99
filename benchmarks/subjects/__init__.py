"""The networks that are measured."""

from benchmarks.subjects.base import Spec, Subject, load, save
from benchmarks.subjects.gpt import GPT, GPTClassifier
from benchmarks.subjects.resnet20 import ResNet20
from benchmarks.subjects.vit import ViT

SPECS: dict[str, Spec] = {spec.name: spec for spec in (ResNet20(), ViT(), GPT(), GPTClassifier())}

__all__ = ["GPT", "SPECS", "GPTClassifier", "ResNet20", "Spec", "Subject", "ViT", "load", "save"]
