"""AlpacaEval (github.com/tatsu-lab/alpaca_eval): a judge prefers a model's answer or a baseline's, one turn each."""
