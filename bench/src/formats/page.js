'use strict';
// A column's figures without their signs, or its words.
function key(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace(/,/g, ''));
  return Number.isNaN(number) ? text : number;
}
function compare(a, b) {
  if (typeof a === 'number' && typeof b === 'number') return a - b;
  if (typeof a === typeof b) return a.localeCompare(b);
  return typeof a === 'number' ? -1 : 1;
}
for (const button of document.querySelectorAll('th button')) {
  button.addEventListener('click', () => {
    const head = button.parentElement;
    const table = head.closest('table');
    const rises = head.getAttribute('aria-sort') !== 'ascending';
    for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', rises ? 'ascending' : 'descending');
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => (rises ? 1 : -1) * compare(key(a, head.cellIndex), key(b, head.cellIndex)));
    table.tBodies[0].append(...rows);
  });
}
document.documentElement.dataset.ready = document.querySelectorAll('figure svg').length;
