/* SPDX-License-Identifier: Apache-2.0 */
/* Calls being put together, and the results made of their answers. Not installed. */
#ifndef DRE_VERBS_H
#define DRE_VERBS_H

#include "serve.h"

#pragma GCC visibility push(hidden)

/* One call; what goes wrong while it is put together is kept until it is to be done. */
struct dre_call {
	struct dre_handle *handle;
	json_object *argv;
	int error;
};

struct dre_call dre_call_of(void *handle, const char *verb);
/* A fixed word, or one that the caller may choose freely because nothing can take it for an option. */
void dre_word(struct dre_call *call, const char *word);
/* A name, a tag or a path: there must be one, and it must not look like an option. */
void dre_place(struct dre_call *call, const char *what, const char *word);
/* `--name=value`, unless *value* is NULL. */
void dre_option(struct dre_call *call, const char *name, const char *value);
/* The same for each of a list that ends with NULL. */
void dre_options_of(struct dre_call *call, const char *name, const char *const *values);
void dre_limits_of(struct dre_call *call, const struct dre_limits *limits);

/* Have it done. */
int dre_done(struct dre_call *call);
/* Have it done, and make results of its rows; of the one row, or with the row in a list that ends with NULL. */
int dre_containers(struct dre_call *call, struct dre_container ***list);
int dre_container_of(struct dre_call *call, struct dre_container **one);
int dre_resources_list(struct dre_call *call, struct dre_resources ***list);
int dre_resources_of(struct dre_call *call, struct dre_resources **one);
int dre_saved_list(struct dre_call *call, struct dre_saved ***list);
int dre_output_of(struct dre_call *call, const void *input, size_t length, struct dre_output **output);
int dre_rows_of(struct dre_call *call, char **rows);

#pragma GCC visibility pop
#endif
