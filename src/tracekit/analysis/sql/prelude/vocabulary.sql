CREATE VIEW vocabulary AS SELECT token_id, text FROM _vocabulary;
COMMENT ON VIEW vocabulary IS 'The text of every token id, from the tokenizer that the session was given. One row a token.';
COMMENT ON COLUMN vocabulary.token_id IS 'The token.';
COMMENT ON COLUMN vocabulary.text IS 'Its text, decoded by itself; part of a character shows as U+FFFD.';

-- _token_texts holds one list in one row: macros look texts up in it without a join.
CREATE MACRO token_text(token_id) AS (FROM _token_texts)[token_id + 1];
COMMENT ON MACRO token_text IS 'The text of a token id; null for an id that the tokenizer does not have. Needs a tokenizer.';

CREATE MACRO token_texts(token_ids) AS list_select((FROM _token_texts), list_transform(token_ids, lambda token_id: token_id + 1));
COMMENT ON MACRO token_texts IS 'The texts of a list of token ids, such as top_token_ids. Needs a tokenizer.';
