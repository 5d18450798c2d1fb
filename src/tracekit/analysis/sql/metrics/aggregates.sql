-- What the metrics of the catalogue add up, of tokens' values.
$macros
