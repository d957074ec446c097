// SPDX-License-Identifier: Apache-2.0
/* All apps, their states and what memory they use. Needs root. cc app-list.c -ldreapp */
#include <dre/dreapp.h>
#include <stdio.h>

int main(void)
{
	struct dre_container **list;
	dre_app *handle;
	int error = dre_app_open(NULL, &handle);

	if (error != 0)
		return 1;
	error = dre_app_list(handle, &list);
	if (error != 0)
		fprintf(stderr, "%s (%d)\n", dre_app_strerror(handle), error);
	for (size_t at = 0; error == 0 && list[at] != NULL; at++)
		printf("%s %s %lld\n", list[at]->name, list[at]->state, (long long)list[at]->memory);
	dre_app_free(list);
	dre_app_close(handle);
	return error != 0;
}
