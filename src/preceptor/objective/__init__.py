"""Losses. A new one is one file here: a `Term` that says what it needs and gives sums over target positions."""

from preceptor.objective.attention import Attention
from preceptor.objective.logits import Logits
from preceptor.objective.next_token import NextToken
from preceptor.objective.objective import LossSums, Objective
from preceptor.objective.router_balance import RouterBalance
from preceptor.objective.terms import Term

__all__ = ["Attention", "Logits", "LossSums", "NextToken", "Objective", "RouterBalance", "Term"]
