// SPDX-License-Identifier: Apache-2.0
/*
 * Counts, saves the count before it ends, and goes on from there. cc counter.c -ldaware
 *
 * usage: counter FILE
 */
#include <daware.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static atomic_long count;

static int save(int number, int left, void *path)
{
	char text[32];

	(void)number;
	(void)left;
	snprintf(text, sizeof text, "%ld\n", count);
	return daware_save_file(path, text, strlen(text));
}

int main(int argc, char *argv[])
{
	FILE *file;
	long before = 0;
	int error;

	if (argc != 2)
		return 2;
	file = fopen(argv[1], "r");
	if (file != NULL) {
		if (fscanf(file, "%ld", &before) != 1)
			before = 0;
		fclose(file);
	}
	count = before;
	error = daware_open("counter", 0);
	if (error == 0)
		error = daware_on_save(0, save, argv[1]);
	if (error != 0) {
		fprintf(stderr, "counter: %s\n", strerror(-error));
		return 1;
	}
	DAWARE_INFO("begun", "from %ld", before);
	daware_ready();
	for (;; count++)
		usleep(1000);
}
